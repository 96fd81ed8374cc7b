// node-postgres through the pooler.
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const { pipeline } = require("node:stream/promises");
const { Readable } = require("node:stream");
const { Client, Pool } = require("pg");
const QueryStream = require("pg-query-stream");
const { from: copyFrom, to: copyTo } = require("pg-copy-streams");

const { runTests } = require("./common.js");

const where = {
  host: process.env.PGHOST,
  port: Number(process.env.PGPORT),
  user: process.env.PGUSER,
  password: process.env.PGPASSWORD,
  database: process.env.PGDATABASE,
};

// As in common.py.
const INVENTORY = `
  SELECT kind, name FROM (
    SELECT 'relation' AS kind, c.oid::regclass::text AS name, relnamespace AS schema FROM pg_class c
    UNION ALL SELECT 'function', p.oid::regprocedure::text, pronamespace FROM pg_proc p
    UNION ALL SELECT 'type', t.oid::regtype::text, typnamespace FROM pg_type t
    UNION ALL SELECT 'trigger', tgrelid::regclass || '.' || tgname, relnamespace
      FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
    UNION ALL SELECT 'schema', nspname, oid FROM pg_namespace
  ) AS object
  JOIN pg_namespace n ON n.oid = schema
  WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
  ORDER BY 1, 2`;
const TABLE = `
  DROP TABLE IF EXISTS node_orders CASCADE;
  CREATE TABLE node_orders (id int PRIMARY KEY, region text, amount numeric);
  INSERT INTO node_orders SELECT n, 'r' || n % 3, n FROM generate_series(1, 30) n`;
const create = (name) => `CREATE STREAM TABLE ${name} AS
  SELECT region, count(*) AS orders, sum(amount) AS revenue FROM node_orders GROUP BY region`;

async function withClient(test, options = {}) {
  const client = new Client({ ...where, ...options });
  await client.connect();
  try {
    return await test(client);
  } finally {
    await client.end();
  }
}

const inventory = () =>
  withClient(async (client) => (await client.query(INVENTORY)).rows, {
    port: Number(process.env.DIRECT_PORT),
  });

// Cancels a query of the client as soon as it runs.
async function cancelled(client, options = {}) {
  const ended = code(client.query("SELECT pg_sleep(600)"));
  await withClient(
    async (observer) => {
      const asleep = `SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'active' AND wait_event = 'PgSleep'`;
      while ((await observer.query(asleep)).rowCount === 0) await new Promise((resolve) => setTimeout(resolve, 10));
    },
    { port: Number(process.env.DIRECT_PORT) },
  );
  const canceller = new Client({ ...where, ...options });
  canceller.cancel(client, client.activeQuery ?? client._activeQuery);
  assert.strictEqual(await ended, "57014");
  assert.strictEqual((await client.query("SELECT 1 AS a")).rows[0].a, 1);
}

const code = (promise) =>
  promise.then(
    () => assert.fail("no error"),
    (error) => error.code ?? error.message,
  );

runTests({
  async connectsWithScram() {
    await withClient(async (client) => {
      const { rows } = await client.query("SELECT current_user::text AS u");
      assert.strictEqual(rows[0].u, where.user);
    });
    const wrong = new Client({ ...where, password: "wrong" });
    assert.strictEqual(await code(wrong.connect()), "28P01");
  },

  async connectsWithTls() {
    const ssl = { ca: fs.readFileSync(process.env.TLS_CA), servername: where.host };
    await withClient(async (client) => {
      assert(client.connection.stream.encrypted);
      const { rows } = await client.query("SELECT repeat($1, 3000000) AS a", ["é"]);
      assert(rows[0].a === "é".repeat(3000000));
      await cancelled(client, { ssl });
    }, { ssl });
    const stranger = { ...ssl, ca: fs.readFileSync(process.env.TLS_OTHER_CA) };
    assert.match(await code(withClient(async () => {}, { ssl: stranger })), /CERT|SIGNATURE|ISSUER/);
  },

  async preparedStatements() {
    await withClient(async (one) => {
      await withClient(async (two) => {
        for (let n = 0; n < 20; n++) {
          const query = { name: "plus", text: "SELECT $1::int + 1 AS a", values: [n] };
          assert.strictEqual((await one.query(query)).rows[0].a, n + 1);
          const other = { name: "plus", text: "SELECT $1::int + 2 AS a", values: [n] };
          assert.strictEqual((await two.query(other)).rows[0].a, n + 2);
          const { rows } = await one.query("SELECT $1::text AS a, $2::json AS b", ["é", { n }]);
          assert.deepStrictEqual(rows, [{ a: "é", b: { n } }]);
        }
      });
    });
  },

  async transactions() {
    await withClient(async (client) => {
      await client.query("BEGIN");
      await client.query("CREATE TEMP TABLE t (a int) ON COMMIT DROP");
      await client.query("INSERT INTO t VALUES ($1)", [1]);
      await client.query("SAVEPOINT s");
      assert.strictEqual(await code(client.query("SELECT 1/$1::int", [0])), "22012");
      assert.strictEqual(await code(client.query("SELECT $1::int", [0])), "25P02");
      await client.query("ROLLBACK TO s");
      assert.strictEqual((await client.query("SELECT a FROM t")).rows.length, 1);
      await client.query("COMMIT");
      assert.strictEqual((await client.query("SELECT to_regclass('t') AS t")).rows[0].t, null);
    });
  },

  async queuedQueries() {
    await withClient(async (client) => {
      const queries = [];
      for (let n = 0; n < 100; n++) {
        queries.push(n % 10 === 5 ? code(client.query("SELECT 1/0")) : client.query("SELECT $1::int AS a", [n]));
      }
      const results = await Promise.all(queries);
      assert.strictEqual(results[99].rows[0].a, 99);
      assert.strictEqual(results[5], "22012");
      const several = await client.query("SELECT 1 AS a; SELECT 2 AS b");
      assert.strictEqual(several.length, 2);
    });
  },

  async cursors() {
    await withClient(async (client) => {
      // Portals with a row limit, each read with Flush or Sync.
      let rows = 0;
      const stream = client.query(new QueryStream("SELECT generate_series(1, $1::int) AS n", [2500], { batchSize: 100 }));
      for await (const row of stream) rows += row.n > 0;
      assert.strictEqual(rows, 2500);
      const early = client.query(new QueryStream("SELECT generate_series(1, 100000)"));
      for await (const row of early) {
        assert(row);
        break;
      }
      assert.strictEqual((await client.query("SELECT 1 AS a")).rows[0].a, 1);
    });
  },

  async copy() {
    await withClient(async (client) => {
      await client.query("BEGIN");
      await client.query("CREATE TEMP TABLE copied (a int, b text) ON COMMIT DROP");
      const lines = Array.from({ length: 5000 }, (_, n) => `${n}\trow ${n}\n`);
      await pipeline(Readable.from(lines), client.query(copyFrom("COPY copied FROM STDIN")));
      let bytes = 0;
      for await (const chunk of client.query(copyTo("COPY copied TO STDOUT"))) bytes += chunk.length;
      assert.strictEqual(bytes, lines.join("").length);
      const bad = pipeline(Readable.from(["bad\n"]), client.query(copyFrom("COPY copied FROM STDIN")));
      assert.strictEqual(await code(bad), "22P02");
      await client.query("ROLLBACK");
      assert.strictEqual((await client.query("SELECT 1 AS a")).rows[0].a, 1);
    });
  },

  async cancels() {
    await withClient(async (client) => {
      for (let n = 0; n < 3; n++) await cancelled(client);
    });
  },

  async listens() {
    await withClient(async (listener) => {
      const heard = [];
      const both = new Promise((resolve) => {
        listener.on("notification", ({ channel, payload }) => heard.push([channel, payload]) === 2 && resolve());
      });
      await listener.query('LISTEN "News"');
      await withClient(async (teller) => {
        for (const [payload, end] of [["first", "COMMIT"], ["rolled back", "ROLLBACK"], ["last", "COMMIT"]]) {
          await teller.query("BEGIN");
          await teller.query("SELECT pg_notify('News', $1)", [payload]);
          await teller.query(end);
        }
      });
      await both;
      assert.deepStrictEqual(heard, [["News", "first"], ["News", "last"]]);
    });
  },

  async types() {
    await withClient(async (client) => {
      const values = ["-9223372036854775808", "123456789.0012300", Infinity, "naïve \u{1F418}", Buffer.from([0, 255]), [1, null, 3], null, ""];
      const text = `SELECT $1::int8 AS "0", $2::numeric AS "1", $3::float8 AS "2", $4::text AS "3", $5::bytea AS "4",
        $6::int4[] AS "5", $7::text AS "6", $8::text AS "7"`;
      for (const query of [{ text }, { text, name: "types" }, { text, name: "types" }]) {
        const { rows } = await client.query({ ...query, values });
        assert.deepStrictEqual(Object.values(rows[0]), values);
      }
      const { rows } = await client.query({ text: "SELECT $1::text AS a, 'b'::text AS b", values: [null], binary: true });
      assert.deepStrictEqual(rows, [{ a: null, b: "b" }]);
    });
  },

  async largeResults() {
    await withClient(async (client) => {
      const text = "SELECT $1::text || repeat('y', 10000000) AS a";
      const { rows } = await client.query(text, ["x".repeat(10_000_000)]);
      assert(rows[0].a === "x".repeat(10_000_000) + "y".repeat(10_000_000));
      const many = await client.query("SELECT n, repeat('z', n % 100) AS z FROM generate_series(0, 99999) n");
      assert.strictEqual(many.rows.length, 100_000);
      many.rows.forEach((row, n) => assert(row.n === n && row.z.length === n % 100));
    });
  },

  async pools() {
    const pool = new Pool({ ...where, max: 20 });
    const results = await Promise.all(
      Array.from({ length: 300 }, (_, n) => pool.query("SELECT $1::int + 1 AS a", [n])),
    );
    assert.deepStrictEqual(results.map((result) => result.rows[0].a), Array.from({ length: 300 }, (_, n) => n + 1));
    await pool.end();
  },

  async streamTables() {
    await withClient(async (client) => {
      await client.query(TABLE);
      for (const query of [
        // Simple protocol, unnamed, named.
        (text) => client.query(text),
        (text) => client.query({ text, values: [], queryMode: "extended" }),
        (text) => client.query({ text, name: text.slice(0, 20) }),
      ]) {
        const created = await query(create("by_node"));
        assert.strictEqual(created.command, "CREATE");
        assert.strictEqual((await client.query("SELECT * FROM by_node")).rows.length, 3);
        assert.strictEqual(await code(query(create("by_node"))), "42P07");
        const dropped = await query("DROP STREAM TABLE by_node");
        assert.strictEqual(dropped.command, "DROP");
      }
      const before = await inventory();
      await client.query(create("by_node"));
      await client.query("DROP STREAM TABLE by_node");
      assert.deepStrictEqual(await inventory(), before);
    });
  },

  async streamTablesRolledBack() {
    await withClient(async (client) => {
      await client.query(TABLE);
      const before = await inventory();
      for (const text of [create("rolled_back"), { text: create("rolled_back"), name: "c", values: [] }]) {
        await client.query("BEGIN");
        await client.query(text);
        assert.strictEqual((await client.query("SELECT * FROM rolled_back")).rows.length, 3);
        await client.query("ROLLBACK");
        assert.deepStrictEqual(await inventory(), before);
      }
      await client.query(`BEGIN; ${create("rolled_back")}; ROLLBACK`);
      assert.deepStrictEqual(await inventory(), before);
      await client.query("DROP TABLE node_orders");
    });
  },
});
