//! The statements on a plain connection: what they leave behind, and what they say when they fail.

use std::sync::Arc;

use pgcat::plugins::{ErrorFields, TransactionContext};
use stream_tables::command::{self, Command};
use stream_tables::conn::{Conn, Error, Row};
use stream_tables::ddl;
use stream_tables::engine::Memory;
use stream_tables::session::Session;
use test_support::Postgres;
use tokio_postgres::Client;

/// A client's session without a pooler around it.
struct Direct {
    client: Client,
    notices: Vec<String>,
    memory: Arc<Memory>,
    /// A transaction block of the client's.
    block: bool,
}

impl Conn for Direct {
    async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        Conn::query(&mut self.client, sql).await
    }
}

impl Session for Direct {
    fn transaction(&self) -> TransactionContext {
        if self.block {
            TransactionContext::Block
        } else {
            TransactionContext::None
        }
    }

    fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory)
    }

    async fn begin(&mut self) -> Result<(), Error> {
        self.query("BEGIN").await.map(|_| ())
    }

    async fn commit(&mut self) -> Result<(), Error> {
        self.query("COMMIT").await.map(|_| ())
    }

    async fn rollback(&mut self) -> Result<(), Error> {
        self.query("ROLLBACK").await.map(|_| ())
    }

    async fn forward(&mut self, sql: &str) -> Result<String, Error> {
        self.query(sql).await.map(|_| String::new())
    }

    fn notice(&mut self, notice: ErrorFields) {
        self.notices.push(notice.message);
    }
}

impl Direct {
    /// Runs a statement as the plugin would, or sends it as it is.
    async fn run(&mut self, sql: &str) -> Result<String, Box<ErrorFields>> {
        match command::parse(sql) {
            Some(command) => {
                let command: Command = command?;
                Ok(command::run(self, &command, "live").await?.tag.to_owned())
            }
            None => match ddl::parse(sql) {
                Some(ddl) => Ok(ddl::run(self, sql, &ddl).await?.tag),
                None => Ok(self.forward(sql).await?),
            },
        }
    }

    async fn ok(&mut self, sql: &str) {
        if let Err(error) = self.run(sql).await {
            panic!("{sql}: {error:?}");
        }
    }

    async fn refused(&mut self, sql: &str) -> ErrorFields {
        *self.run(sql).await.expect_err(sql)
    }

    async fn value(&mut self, sql: &str) -> Option<String> {
        let rows = self
            .query(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows.first().and_then(|row| row.text(0)).map(str::to_owned)
    }
}

async fn session(postgres: &Postgres) -> Direct {
    let client = postgres.client("postgres", "postgres").await;
    Direct {
        client,
        notices: Vec::new(),
        memory: Arc::default(),
        block: false,
    }
}

/// Everything there is, but for the contents of the plugin's own tables.
const EVERYTHING: &str = "SELECT md5(string_agg(o, ',' ORDER BY o)) FROM (
    SELECT 'c' || oid || relname FROM pg_class WHERE relnamespace <> 'pg_toast'::regnamespace
    UNION ALL SELECT 'p' || oid || proname FROM pg_proc
    UNION ALL SELECT 'n' || oid || nspname FROM pg_namespace
    UNION ALL SELECT 't' || oid || tgname FROM pg_trigger
    UNION ALL SELECT 's' || id FROM pgtrickle.catalog
    UNION ALL SELECT 'b' || id FROM pgtrickle.buffer) x(o)";

const SOURCE: &str = "CREATE TABLE t (id int PRIMARY KEY, v int, tag text)";

#[tokio::test]
async fn what_fails_or_is_dropped_leaves_nothing() {
    let postgres = Postgres::start(15);
    let mut s = session(&postgres).await;
    s.ok(SOURCE).await;
    s.ok("INSERT INTO t SELECT i, i % 3, 'x' FROM generate_series(1, 9) i")
        .await;
    // The schema stays once it is there.
    s.ok("CREATE STREAM TABLE first AS SELECT id FROM t").await;
    s.ok("DROP STREAM TABLE first").await;
    let before = s.value(EVERYTHING).await;
    for (sql, code) in [
        (
            "CREATE STREAM TABLE x AS SELECT 1 / (v - v) AS boom FROM t",
            "22012",
        ),
        ("CREATE STREAM TABLE x AS SELECT nix FROM t", "42703"),
        ("CREATE STREAM TABLE pg_temp.x AS SELECT id FROM t", "42P16"),
        (
            "CREATE STREAM TABLE pgtrickle.x AS SELECT id FROM t",
            "42501",
        ),
        ("CREATE STREAM TABLE t AS SELECT 1 AS one", "42P07"),
    ] {
        assert_eq!(s.refused(sql).await.code, code, "{sql}");
        assert_eq!(s.value(EVERYTHING).await, before, "{sql}");
    }
    s.ok("CREATE STREAM TABLE a AS SELECT tag, sum(v) AS s FROM t GROUP BY tag")
        .await;
    s.ok("CREATE STREAM TABLE b AS SELECT s FROM a").await;
    let error = s.refused("DROP STREAM TABLE a").await;
    assert_eq!(error.code, "2BP01");
    assert_eq!(
        error.detail.as_deref(),
        Some("stream table b depends on stream table a")
    );
    s.ok("DROP STREAM TABLE IF EXISTS nix, a, b").await;
    assert_eq!(s.notices, ["stream table \"nix\" does not exist, skipping"]);
    assert_eq!(s.value(EVERYTHING).await, before);
    s.ok("BEGIN").await;
    s.block = true;
    s.ok("CREATE STREAM TABLE a AS SELECT id FROM t").await;
    s.ok("DROP TABLE t CASCADE").await;
    s.ok("ROLLBACK").await;
    assert_eq!(s.value(EVERYTHING).await, before);
}

#[tokio::test]
async fn a_held_lock_is_waited_for_and_its_holder_named() {
    let postgres = Postgres::start(15);
    let (mut s, mut holder) = (session(&postgres).await, session(&postgres).await);
    s.ok(SOURCE).await;
    holder.ok("BEGIN").await;
    holder.ok("INSERT INTO t VALUES (1, 1, 'held')").await;
    let pid = holder.value("SELECT pg_backend_pid()").await.expect("pid");
    let error = s.refused("CREATE STREAM TABLE x AS SELECT id FROM t").await;
    assert_eq!(error.code, "55P03");
    let detail = error.detail.unwrap_or_default();
    assert!(
        detail.starts_with(&format!(
            "Process {pid} holds RowExclusiveLock on relation t"
        )),
        "{detail}"
    );
    let create = s.run("CREATE STREAM TABLE x AS SELECT id FROM t");
    let release = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        holder.ok("COMMIT").await;
    };
    let (created, ()) = tokio::join!(create, release);
    assert_eq!(
        created.expect("created once the lock is free"),
        "CREATE STREAM TABLE"
    );
    assert_eq!(
        s.value("SELECT count(*) FROM x").await.as_deref(),
        Some("1")
    );
}

#[tokio::test]
async fn source_ddl_is_taken_in() {
    let postgres = Postgres::start(15);
    let mut s = session(&postgres).await;
    s.ok(SOURCE).await;
    s.ok("CREATE VIEW w AS SELECT id, v FROM t").await;
    s.ok("CREATE STREAM TABLE x AS SELECT v, count(*) AS n FROM w GROUP BY v")
        .await;
    for sql in [
        "ALTER TABLE t ADD COLUMN extra int",
        "ALTER TABLE t RENAME TO u",
        "CREATE OR REPLACE VIEW w AS SELECT id, v FROM u WHERE id > 0",
        "ALTER TABLE u DROP COLUMN extra",
        "CREATE SCHEMA s",
        "ALTER TABLE u SET SCHEMA s",
        "INSERT INTO s.u VALUES (1, 5, 'a'), (-1, 5, 'b')",
        "REFRESH STREAM TABLE x",
    ] {
        s.ok(sql).await;
    }
    assert_eq!(
        s.value("SELECT string_agg(v || ':' || n, ',') FROM x")
            .await
            .as_deref(),
        Some("5:1")
    );
    s.ok("CREATE STREAM TABLE y AS SELECT tag FROM s.u").await;
    let error = s.refused("ALTER TABLE s.u DROP COLUMN tag").await;
    assert_eq!(
        error.message,
        "cannot drop column tag of table u because other objects depend on it"
    );
    assert_eq!(
        error.detail.as_deref(),
        Some("stream table y depends on column tag of table u")
    );
    let error = s.refused("DROP VIEW w").await;
    assert_eq!(
        error.detail.as_deref(),
        Some("stream table x depends on view w")
    );
    s.ok("ALTER TABLE s.u ALTER COLUMN tag TYPE varchar(9)")
        .await;
    s.ok("ALTER TABLE s.u DROP COLUMN tag CASCADE").await;
    let left = s
        .value("SELECT string_agg(name, ',') FROM pgtrickle.stream_tables")
        .await;
    assert_eq!(left.as_deref(), Some("x"));
    assert_eq!(
        s.refused("ALTER TABLE x ADD COLUMN more int").await.code,
        "42809"
    );
    s.ok("DROP TABLE x").await;
    s.ok("DROP TABLE s.u CASCADE").await;
}

impl Direct {
    /// The first column of each row a statement of ours returns, or all of them joined.
    async fn rows(&mut self, sql: &str) -> Vec<String> {
        let command = command::parse(sql).expect("ours").expect(sql);
        let outcome = command::run(self, &command, "live").await;
        let rows = outcome.unwrap_or_else(|e| panic!("{sql}: {e}")).rows;
        let text = |row: Vec<Option<String>>| {
            let cells: Vec<_> = row.into_iter().map(Option::unwrap_or_default).collect();
            cells.join("|")
        };
        rows.into_iter().map(text).collect()
    }
}

#[tokio::test]
async fn verify_shows_what_differs_both_ways() {
    let postgres = Postgres::start(15);
    let mut s = session(&postgres).await;
    s.ok(SOURCE).await;
    s.ok("INSERT INTO t SELECT i, i % 3, 'x' FROM generate_series(1, 9) i")
        .await;
    s.ok("CREATE STREAM TABLE n AS SELECT v, count(*) AS n FROM t GROUP BY v")
        .await;
    // What waits to be taken in is no difference.
    s.ok("INSERT INTO t VALUES (10, 7, 'y')").await;
    assert_eq!(s.rows("VERIFY STREAM TABLE n").await, [""; 0]);
    s.ok("UPDATE n SET n = 99 WHERE v = 7").await;
    s.ok("INSERT INTO n SELECT * FROM n WHERE v = 1").await;
    assert_eq!(
        s.rows("VERIFY STREAM TABLE n").await,
        [
            "unexpected|1|(1,3)",
            "missing|1|(7,1)",
            "unexpected|1|(7,99)"
        ]
    );
    s.ok("REFRESH STREAM TABLE n FULL").await;
    assert_eq!(s.rows("VERIFY STREAM TABLE n").await, [""; 0]);
    assert_eq!(s.refused("VERIFY STREAM TABLE t").await.code, "42809");
}

#[tokio::test]
async fn explain_tells_how_and_leaves_nothing() {
    let postgres = Postgres::start(15);
    let mut s = session(&postgres).await;
    s.ok(SOURCE).await;
    s.ok("CREATE TABLE big (t int, x int); INSERT INTO big SELECT i, i FROM generate_series(1, 20000) i; ANALYZE big")
        .await;
    s.ok("CREATE STREAM TABLE first AS SELECT id FROM t").await;
    s.ok("DROP STREAM TABLE first").await;
    let before = s.value(EVERYTHING).await;
    let create =
        "CREATE STREAM TABLE x AS SELECT t.id, g.n, row_number() OVER (ORDER BY t.id) AS r FROM t
        LEFT JOIN (SELECT t, count(*) AS n FROM big GROUP BY t) g ON g.t = t.id
        JOIN big b ON b.t = t.v";
    let planned = s.rows(&format!("EXPLAIN {create}")).await;
    assert_eq!(s.value(EVERYTHING).await, before);
    s.block = true;
    s.ok("BEGIN").await;
    assert_eq!(
        s.rows(&format!("EXPLAIN {create}")).await.len(),
        planned.len()
    );
    s.ok("COMMIT").await;
    s.block = false;
    assert_eq!(s.value(EVERYTHING).await, before);

    s.ok(create).await;
    let missing = "CREATE INDEX ON \"public\".\"big\" (\"t\");";
    assert_eq!(
        s.notices,
        ["refreshes of stream table \"x\" will have to scan table \"big\""]
    );
    for lines in [planned, s.rows("EXPLAIN STREAM TABLE x").await] {
        let text = lines.join("\n");
        for part in [
            "Mode: incremental",
            "groups, kept from the weights of changed rows",
            "computed anew on any change of its input",
            "row by row",
            "nullable side of a join",
            missing,
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
    s.ok("CREATE INDEX ON big (t)").await;
    s.ok("INSERT INTO t VALUES (1, 1, 'x')").await;
    let text = s
        .rows("EXPLAIN (ANALYZE, VERBOSE) STREAM TABLE x")
        .await
        .join("\n");
    assert!(!text.contains("Missing index"), "{text}");
    for part in [
        "Refresh: incremental, 1 rows inserted, 0 deleted",
        "Execution Time: ",
        "Delta of \"public\".\"t\": SELECT",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!(s.refused("EXPLAIN STREAM TABLE t").await.code, "42809");
    s.ok("CREATE STREAM TABLE f AS SELECT current_date AS d, id FROM t")
        .await;
    let text = s.rows("EXPLAIN STREAM TABLE f").await.join("\n");
    assert!(
        text.contains("Mode: full") && text.contains("current date"),
        "{text}"
    );
}
