// postgres.js through the pooler: every query a named statement, and pipelined.
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const { pipeline } = require("node:stream/promises");
const { Readable } = require("node:stream");
const postgres = require("postgres");

const { runTests } = require("./common.js");

const where = {
  host: process.env.PGHOST,
  port: Number(process.env.PGPORT),
  user: process.env.PGUSER,
  password: process.env.PGPASSWORD,
  database: process.env.PGDATABASE,
  ssl: false,
  max: 1,
  onnotice: () => {},
};

async function withClient(test, options = {}) {
  const sql = postgres({ ...where, ...options });
  try {
    return await test(sql);
  } finally {
    await sql.end();
  }
}

const code = (promise) =>
  promise.then(
    () => assert.fail("no error"),
    (error) => error.code ?? error.message,
  );

// Cancels a query of the client as soon as it runs.
async function cancelled(sql) {
  const query = sql`SELECT pg_sleep(600)`;
  const ended = code(query);
  await withClient(
    async (observer) => {
      for (;;) {
        const [{ asleep }] = await observer`SELECT count(*)::int AS asleep FROM pg_stat_activity
          WHERE datname = current_database() AND state = 'active' AND wait_event = 'PgSleep'`;
        if (asleep > 0) break;
      }
    },
    { port: Number(process.env.DIRECT_PORT) },
  );
  await query.cancel();
  assert.strictEqual(await ended, "57014");
  assert.deepStrictEqual([...(await sql`SELECT 1 AS a`)], [{ a: 1 }]);
}

runTests({
  async connectsWithScram() {
    await withClient(async (sql) => {
      assert.deepStrictEqual([...(await sql`SELECT current_user::text AS u`)], [{ u: where.user }]);
    });
    await withClient(
      async (sql) => {
        assert.strictEqual(await code(sql`SELECT 1`), "28P01");
      },
      { password: "wrong" },
    );
  },

  async connectsWithTls() {
    const tls = (ca) => ({ ssl: { ca: fs.readFileSync(ca), servername: where.host } });
    await withClient(async (sql) => {
      const [{ a }] = await sql`SELECT repeat(${"é"}, 3000000) AS a`;
      assert(a === "é".repeat(3000000));
    }, tls(process.env.TLS_CA));
    await withClient(async (sql) => {
      assert.match(await code(sql`SELECT 1`), /CERT|SIGNATURE|ISSUER/);
    }, tls(process.env.TLS_OTHER_CA));
  },

  async preparedStatementsOfManyClients() {
    await withClient(
      async (sql) => {
        await Promise.all(
          Array.from({ length: 300 }, async (_, n) => {
            await sql.begin(async (sql) => {
              assert.strictEqual((await sql`SELECT ${n}::int + 1 AS a`)[0].a, n + 1);
              const [row] = await sql.unsafe(`SELECT $1::text || ' ${n % 7}' AS a`, ["own"], { prepare: true });
              assert.strictEqual(row.a, `own ${n % 7}`);
            });
          }),
        );
      },
      { max: 15 },
    );
  },

  async errorsInTransactions() {
    await withClient(async (sql) => {
      await sql`DROP TABLE IF EXISTS kept`;
      await sql`CREATE TABLE kept (a int PRIMARY KEY)`;
      await sql.begin(async (sql) => {
        await sql`INSERT INTO kept VALUES (1)`;
        const failed = sql.savepoint(async (sql) => {
          await sql`INSERT INTO kept VALUES (2)`;
          await sql`INSERT INTO kept VALUES (1)`;
        });
        assert.strictEqual(await code(failed), "23505");
        await sql`INSERT INTO kept VALUES (3)`;
      });
      assert.strictEqual(await code(sql.begin((sql) => [sql`INSERT INTO kept VALUES (4)`, sql`SELECT 1/0`])), "22012");
      assert.deepStrictEqual((await sql`SELECT a FROM kept ORDER BY a`).map((row) => row.a), [1, 3]);
      await sql`DROP TABLE kept`;
    });
  },

  async pipelines() {
    await withClient(async (sql) => {
      const results = await Promise.all(
        Array.from({ length: 200 }, (_, n) => {
          const query = sql`SELECT 100 / ${n % 10}::int AS a`;
          return n % 10 === 0 ? code(query) : query.then(([{ a }]) => a);
        }),
      );
      results.forEach((a, n) => assert.strictEqual(a, n % 10 === 0 ? "22012" : Math.trunc(100 / (n % 10))));
    });
  },

  async copies() {
    await withClient(async (sql) => {
      await sql`DROP TABLE IF EXISTS copied`;
      await sql`CREATE TABLE copied (a int, b text)`;
      const lines = Array.from({ length: 20_000 }, (_, n) => `${n}\trow ${n}\n`);
      await pipeline(Readable.from(lines), await sql`COPY copied FROM STDIN`.writable());
      const chunks = [];
      // No more than its stream buffers: else it never reads its socket again, on a direct connection, too.
      const some = sql`COPY (SELECT * FROM copied WHERE a < 500 ORDER BY a) TO STDOUT`;
      for await (const chunk of await some.readable()) chunks.push(chunk);
      assert(Buffer.concat(chunks).toString() === lines.slice(0, 500).join(""));
      assert.strictEqual((await sql`SELECT count(*)::int AS n FROM copied WHERE b = 'row ' || a`)[0].n, 20_000);
      await sql`DROP TABLE copied`;
    });
  },

  async cancels() {
    await withClient(async (sql) => {
      for (let n = 0; n < 3; n++) await cancelled(sql);
    });
  },

  async cursors() {
    await withClient(async (sql) => {
      let total = 0;
      await sql`SELECT n FROM generate_series(1, 2500) n`.cursor(100, (rows) => {
        for (const { n } of rows) total += n;
      });
      assert.strictEqual(total, (2500 * 2501) / 2);
      for await (const [row] of sql`SELECT n FROM generate_series(1, 100000) n`.cursor()) {
        assert.strictEqual(row.n, 1);
        break;
      }
      assert.deepStrictEqual([...(await sql`SELECT 1 AS a`)], [{ a: 1 }]);
    });
  },

  // It remembers columns by statement, and prepares again when the server says that they have changed.
  async changedTables() {
    await withClient(
      async (beside) => {
        await withClient(async (sql) => {
          await beside`DROP TABLE IF EXISTS changing`;
          await beside`CREATE TABLE changing AS SELECT 1 AS a`;
          const rows = async () => [...(await sql`SELECT * FROM changing`)];
          assert.deepStrictEqual(await rows(), [{ a: 1 }]);
          await beside`ALTER TABLE changing ADD b text DEFAULT 'x'`;
          assert.deepStrictEqual(await rows(), [{ a: 1, b: "x" }]);
          await sql`ALTER TABLE changing ALTER a TYPE text`;
          assert.deepStrictEqual(await rows(), [{ a: "1", b: "x" }]);
          await beside`ALTER TABLE changing RENAME b TO c`;
          assert.deepStrictEqual(await rows(), [{ a: "1", c: "x" }]);
          await sql`DROP TABLE changing`;
        });
      },
      { port: Number(process.env.DIRECT_PORT) },
    );
  },

  async listens() {
    await withClient(async (sql) => {
      const heard = [];
      await new Promise((resolve, reject) => {
        const tell = async () => {
          for (const payload of ["first", "rolled back", "last"]) {
            const transaction = sql.begin(async (sql) => {
              await sql`SELECT pg_notify('News', ${payload})`;
              if (payload === "rolled back") throw new Error(payload);
            });
            await transaction.catch((error) => assert.strictEqual(error.message, "rolled back"));
          }
        };
        sql.listen("News", (payload) => heard.push(payload) === 2 && resolve()).then(tell).catch(reject);
      });
      assert.deepStrictEqual(heard, ["first", "last"]);
    });
  },

  async types() {
    await withClient(async (sql) => {
      const when = new Date("2024-02-29T12:30:00.123Z");
      const values = ["-9223372036854775808", "123456789.0012300", Infinity, "naïve \u{1F418}", when, { a: [1, null] }, null, ""];
      for (let n = 0; n < 3; n++) {
        const [row] = await sql`SELECT ${values[0]}::int8 AS a, ${values[1]}::numeric AS b, ${values[2]}::float8 AS c,
          ${values[3]}::text AS d, ${values[4]}::timestamptz AS e, ${sql.json(values[5])}::jsonb AS f,
          ${null}::text AS g, ${""}::text AS h`;
        assert.deepStrictEqual(Object.values(row), values);
        const [{ a, b }] = await sql`SELECT ${Buffer.from([0, 255])}::bytea AS a, ${[1, 3]}::int[] AS b`;
        assert.deepStrictEqual([a, b], [Buffer.from([0, 255]), [1, 3]]);
      }
    });
  },

  async largeResults() {
    await withClient(async (sql) => {
      const [{ a }] = await sql`SELECT ${"x".repeat(10_000_000)}::text || repeat('y', 10000000) AS a`;
      assert(a === "x".repeat(10_000_000) + "y".repeat(10_000_000));
      const rows = await sql`SELECT n, repeat('z', n % 100) AS z FROM generate_series(0, 99999) n`;
      assert.strictEqual(rows.length, 100_000);
      rows.forEach((row, n) => assert(row.n === n && row.z.length === n % 100));
    });
  },
});
