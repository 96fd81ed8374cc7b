//! The statements themselves: variants and options.

use std::time::Duration;

use test_support::{Settings, Stack, converges, differences, refused, scalar, statement_stack};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");
const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn options_and_lists_show_in_the_catalog() {
    let (_stack, pooled, direct) = statement_stack(PGCAT).await;
    for sql in [
        "CREATE STREAM TABLE plain AS SELECT id, v FROM t",
        "create stream table slow with (schedule = '1h30m', refresh_mode = 'full') as select count(*) as n from t;",
        "CREATE STREAM TABLE named (a, \"B c\") WITH (SCHEDULE = 'manual') AS SELECT id, v FROM t WITH DATA",
        "CREATE STREAM TABLE public.live WITH (schedule = 'live', refresh_mode = 'incremental') AS TABLE t",
        "CREATE STREAM TABLE listed AS VALUES (1, 'x'), (2, 'y')",
    ] {
        pooled
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    let row = |name: &str| {
        format!("SELECT schema || ' ' || owner || ' ' || schedule || ' ' || refresh_mode || ' ' || effective_mode || ' ' || status
                 FROM pgtrickle.stream_tables WHERE name = '{name}'")
    };
    assert_eq!(
        scalar(&direct, &row("plain")).await.as_deref(),
        Some("public app live auto incremental active")
    );
    assert_eq!(
        scalar(&direct, &row("slow")).await.as_deref(),
        Some("public app 1h30m full full active")
    );
    assert_eq!(
        scalar(&direct, &row("named")).await.as_deref(),
        Some("public app manual auto incremental active")
    );
    assert_eq!(
        scalar(&direct, &row("live")).await.as_deref(),
        Some("public app live incremental incremental active")
    );
    let columns = "SELECT string_agg(quote_ident(attname), ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'named'::regclass AND attnum > 0";
    assert_eq!(scalar(&direct, columns).await.as_deref(), Some("a,\"B c\""));
    for (name, query) in [
        ("plain", "SELECT id, v FROM t"),
        ("live", "TABLE t"),
        ("listed", "VALUES (1, 'x'), (2, 'y')"),
    ] {
        converges(&direct, name, query, LIMIT).await;
    }
    // Everything a full recompute has a reason that a user can read.
    let reason = "SELECT reason FROM pgtrickle.stream_tables WHERE name = 'listed' AND effective_mode = 'full'";
    if let Some(reason) = scalar(&direct, reason).await {
        assert!(!reason.is_empty());
    }
    let shown = pooled
        .query("SHOW STREAM TABLES", &[])
        .await
        .expect("SHOW by the extended protocol");
    let names: Vec<&str> = shown.iter().map(|row| row.get::<_, &str>("name")).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    let expected = [
        "schema",
        "name",
        "owner",
        "query",
        "schedule",
        "refresh_mode",
        "effective_mode",
        "reason",
        "status",
    ];
    let columns: Vec<&str> = shown[0]
        .columns()
        .iter()
        .map(|column| column.name())
        .collect();
    assert_eq!(columns[..9], expected);
}

#[tokio::test]
async fn manual_tables_wait_for_refresh() {
    let (_stack, pooled, direct) = statement_stack(PGCAT).await;
    pooled.batch_execute("CREATE STREAM TABLE m WITH (schedule = 'manual') AS SELECT tag, sum(v) AS s FROM t GROUP BY tag").await.expect("created");
    let query = "SELECT tag, sum(v) AS s FROM t GROUP BY tag";
    converges(&direct, "m", query, Duration::ZERO).await;
    direct
        .batch_execute("UPDATE t SET v = v + 1")
        .await
        .expect("write");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        !differences(&direct, "TABLE m", query)
            .await
            .expect("compared")
            .is_empty(),
        "manual means manual"
    );
    pooled
        .batch_execute("REFRESH STREAM TABLE m")
        .await
        .expect("refresh");
    converges(&direct, "m", query, Duration::ZERO).await;
    direct
        .batch_execute("DELETE FROM t WHERE id < 10")
        .await
        .expect("write");
    pooled
        .execute("REFRESH STREAM TABLE m FULL", &[])
        .await
        .expect("full refresh");
    converges(&direct, "m", query, Duration::ZERO).await;
    // In a block it sees the block's own writes.
    pooled
        .batch_execute("BEGIN; UPDATE t SET tag = 'own'; REFRESH STREAM TABLE m")
        .await
        .expect("in a block");
    converges(&pooled, "m", query, Duration::ZERO).await;
    assert_eq!(
        scalar(&pooled, "SELECT count(*) FROM m").await.as_deref(),
        Some("1")
    );
    pooled.batch_execute("ROLLBACK").await.expect("rollback");
    converges(&direct, "m", query, Duration::ZERO).await;
    assert_eq!(
        refused(&pooled, "REFRESH STREAM TABLE nowhere")
            .await
            .code()
            .code(),
        "42P01"
    );
    assert_eq!(
        refused(&pooled, "REFRESH STREAM TABLE t")
            .await
            .code()
            .code(),
        "42809"
    );
}

#[tokio::test]
async fn with_no_data_is_filled_by_refresh() {
    let (_stack, pooled, direct) = statement_stack(PGCAT).await;
    pooled
        .batch_execute(
            "CREATE STREAM TABLE n WITH (schedule = 'manual') AS SELECT id FROM t WITH NO DATA",
        )
        .await
        .expect("created");
    assert_eq!(
        scalar(&direct, "SELECT count(*) FROM n").await.as_deref(),
        Some("0")
    );
    pooled
        .batch_execute("REFRESH STREAM TABLE n")
        .await
        .expect("refresh");
    converges(&direct, "n", "SELECT id FROM t", Duration::ZERO).await;
}

#[tokio::test]
async fn existing_names() {
    let (stack, pooled, direct) = statement_stack(PGCAT).await;
    pooled
        .batch_execute("CREATE STREAM TABLE s AS SELECT id FROM t")
        .await
        .expect("created");
    let error = refused(&pooled, "CREATE STREAM TABLE s AS SELECT v FROM t").await;
    assert_eq!(
        (error.code().code(), error.message()),
        ("42P07", "relation \"s\" already exists")
    );
    assert_eq!(
        refused(&pooled, "CREATE STREAM TABLE t AS SELECT 1")
            .await
            .code()
            .code(),
        "42P07"
    );
    let output = stack
        .psql()
        .try_run(&["CREATE STREAM TABLE IF NOT EXISTS s AS SELECT v FROM t"]);
    assert_eq!(output.stdout, "CREATE STREAM TABLE\n");
    assert_eq!(
        output.stderr,
        "NOTICE:  relation \"s\" already exists, skipping\n"
    );
    converges(&direct, "s", "SELECT id FROM t", LIMIT).await;
    assert_eq!(
        refused(&pooled, "CREATE TABLE s (x int)")
            .await
            .code()
            .code(),
        "42P07"
    );
}

#[tokio::test]
async fn drop_variants() {
    let (stack, pooled, direct) = statement_stack(PGCAT).await;
    for name in ["a", "b", "c", "d", "\"E e\""] {
        pooled
            .batch_execute(&format!(
                "CREATE STREAM TABLE {name} AS SELECT id, v FROM t"
            ))
            .await
            .expect(name);
    }
    pooled
        .batch_execute("DROP STREAM TABLE a, public.b")
        .await
        .expect("two at once");
    pooled
        .batch_execute("drop /* c */ stream -- x\n table if exists \"E e\" restrict;")
        .await
        .expect("any spelling");
    let output = stack.psql().try_run(&["DROP STREAM TABLE IF EXISTS a"]);
    assert_eq!(output.stdout, "DROP STREAM TABLE\n");
    assert_eq!(
        output.stderr,
        "NOTICE:  stream table \"a\" does not exist, skipping\n"
    );
    // All or nothing.
    assert_eq!(
        refused(&pooled, "DROP STREAM TABLE c, a")
            .await
            .code()
            .code(),
        "42P01"
    );
    converges(&direct, "c", "SELECT id, v FROM t", LIMIT).await;

    direct
        .batch_execute("CREATE VIEW on_c AS SELECT id FROM c")
        .await
        .expect("view");
    let error = refused(&pooled, "DROP STREAM TABLE c").await;
    assert_eq!(error.code().code(), "2BP01", "{error:?}");
    assert!(
        error.detail().is_some_and(|detail| detail.contains("on_c")),
        "{error:?}"
    );
    pooled
        .batch_execute("DROP STREAM TABLE c CASCADE")
        .await
        .expect("cascade");
    assert_eq!(scalar(&direct, "SELECT to_regclass('on_c')").await, None);

    // PostgreSQL's own statement on the plain table means the same.
    pooled
        .batch_execute("DROP TABLE d")
        .await
        .expect("DROP TABLE");
    assert_eq!(
        scalar(&direct, "SELECT count(*) FROM pgtrickle.stream_tables")
            .await
            .as_deref(),
        Some("0")
    );
    assert_eq!(
        scalar(
            &direct,
            "SELECT count(*) FROM pg_trigger WHERE tgrelid = 't'::regclass"
        )
        .await
        .as_deref(),
        Some("0")
    );
    let left = "SELECT string_agg(relname, ',') FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname ~ '_[0-9]+$'";
    assert_eq!(scalar(&direct, left).await, None);
}

#[tokio::test]
async fn alter() {
    let (_stack, pooled, direct) = statement_stack(PGCAT).await;
    let query = "SELECT tag, sum(v) AS s FROM t GROUP BY tag";
    let run = async |sql: &str| {
        pooled
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    };
    let row = "SELECT name || ' ' || schedule || ' ' || refresh_mode || ' ' || effective_mode || ' ' || status
               FROM pgtrickle.stream_tables";
    let is = async |expected: &str| {
        assert_eq!(scalar(&direct, row).await.as_deref(), Some(expected));
    };
    // The worker hears of it a moment later, and may be at it.
    let stays_behind = async || {
        for _ in 0..5 {
            direct
                .batch_execute("UPDATE t SET v = v + 1")
                .await
                .expect("write");
            tokio::time::sleep(Duration::from_secs(1)).await;
            let differences = differences(&direct, "TABLE a", query).await;
            if !differences.expect("compared").is_empty() {
                return;
            }
        }
        panic!("it is refreshed all the same");
    };
    run(&format!("CREATE STREAM TABLE a AS {query}")).await;
    run("ALTER STREAM TABLE a SET (schedule = 'manual')").await;
    is("a manual auto incremental active").await;
    stays_behind().await;
    run("ALTER STREAM TABLE IF EXISTS public.a RESET (schedule);").await;
    is("a live auto incremental active").await;
    converges(&direct, "a", query, LIMIT).await;

    run("ALTER STREAM TABLE a SUSPEND").await;
    is("a live auto incremental suspended").await;
    stays_behind().await;
    run("REFRESH STREAM TABLE a").await;
    converges(&direct, "a", query, Duration::ZERO).await;
    is("a live auto incremental suspended").await;
    stays_behind().await;
    // Also by the extended protocol.
    pooled
        .execute("ALTER STREAM TABLE a RESUME", &[])
        .await
        .expect("resumed");
    is("a live auto incremental active").await;
    converges(&direct, "a", query, LIMIT).await;

    run("ALTER STREAM TABLE a SET (refresh_mode = full, schedule = '1h')").await;
    is("a 1h full full active").await;
    run("BEGIN; ALTER STREAM TABLE a SET (refresh_mode = incremental, schedule = live); ROLLBACK")
        .await;
    is("a 1h full full active").await;
    run("ALTER STREAM TABLE a RESET (refresh_mode, schedule)").await;
    converges(&direct, "a", query, LIMIT).await;
    is("a live auto incremental active").await;
    direct
        .batch_execute("DELETE FROM t WHERE id % 2 = 0")
        .await
        .expect("write");
    converges(&direct, "a", query, LIMIT).await;

    // With a reader, which follows.
    run("CREATE STREAM TABLE reader AS SELECT max(s) AS most FROM a").await;
    run("CREATE SCHEMA moved").await;
    run("ALTER STREAM TABLE a RENAME TO b").await;
    run("ALTER STREAM TABLE b SET SCHEMA moved").await;
    direct
        .batch_execute("UPDATE t SET v = v + 1000")
        .await
        .expect("write");
    converges(&direct, "moved.b", query, LIMIT).await;
    converges(&direct, "reader", "SELECT max(s) FROM moved.b", LIMIT).await;

    run("ALTER STREAM TABLE IF EXISTS nowhere SUSPEND").await;
    run("CREATE STREAM TABLE full_only AS SELECT current_date AS d").await;
    for (sql, code) in [
        ("ALTER STREAM TABLE nowhere SUSPEND", "42P01"),
        ("ALTER STREAM TABLE t SUSPEND", "42809"),
        ("ALTER STREAM TABLE moved.b OWNER TO postgres", "0A000"),
        ("ALTER STREAM TABLE moved.b SET (speed = 1)", "22023"),
        ("ALTER STREAM TABLE moved.b RENAME COLUMN s TO x", "42809"),
        (
            "ALTER STREAM TABLE full_only SET (refresh_mode = incremental)",
            "0A000",
        ),
    ] {
        assert_eq!(refused(&pooled, sql).await.code().code(), code, "{sql}");
    }
}

/// Which has a large table for hours, and makes way for those only who have waited for `deadlock_timeout`.
#[tokio::test]
async fn a_source_that_autovacuum_is_busy_with_is_had() {
    // Slow beyond all patience: a page costs 21, and 1 of them is worth a pause.
    let settings = [
        ("autovacuum", "on"),
        ("autovacuum_naptime", "1s"),
        ("autovacuum_vacuum_cost_delay", "100ms"),
        ("autovacuum_vacuum_cost_limit", "1"),
        ("deadlock_timeout", "700ms"),
    ];
    let settings = settings
        .iter()
        .fold(Settings::default(), |s, (name, value)| {
            s.parameter(name, value)
        });
    let stack = Stack::start_with(PGCAT, 15, &settings, |config| config);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    direct
        .batch_execute(
            "CREATE TABLE big (id int PRIMARY KEY, v int);
             INSERT INTO big SELECT i, i % 7 FROM generate_series(1, 200000) i; DELETE FROM big WHERE id % 2 = 0",
        )
        .await
        .expect("source");
    let comes_to = async |table: &str| {
        let busy = format!(
            "SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
             WHERE l.relation = '{table}'::regclass AND a.usesysid IS NULL AND l.mode = 'ShareUpdateExclusiveLock'"
        );
        let begun = std::time::Instant::now();
        while scalar(&direct, &busy).await.is_none() {
            assert!(
                begun.elapsed() < 6 * LIMIT,
                "autovacuum does not come to {table}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    comes_to("big").await;
    let sql = "CREATE STREAM TABLE counted AS SELECT id, count(*) FROM big GROUP BY id";
    pooled.batch_execute(sql).await.expect(sql);
    let query = "SELECT id, count(*) FROM big GROUP BY id";
    converges(&direct, "counted", query, LIMIT).await;
    comes_to("big").await;
    let sql = "DROP STREAM TABLE counted";
    pooled.batch_execute(sql).await.expect(sql);
}
