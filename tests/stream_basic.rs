//! The product in one example, on every supported major: a stream table follows its sources, and
//! looks like a plain table.

use std::time::Duration;

use test_support::{Stack, converges, majors, scalar};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");

const QUERY: &str = "SELECT c.region, count(*) AS orders, sum(o.amount) AS revenue
  FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region";

const SOURCES: &str = "
  CREATE TABLE customers (id int PRIMARY KEY, region text);
  CREATE TABLE orders (id bigserial PRIMARY KEY, customer_id int, amount numeric(12,2));
  INSERT INTO customers VALUES (1, 'north'), (2, 'south'), (3, NULL);
  INSERT INTO orders (customer_id, amount) SELECT 1 + i % 3, i FROM generate_series(1, 30) i";

/// "Shortly after": generous for a loaded machine, but far below any schedule other than live.
const SHORTLY: Duration = Duration::from_secs(5);

fn stack_with_example(major: u32) -> Stack {
    let stack = Stack::start(PGCAT, major);
    let output = stack.psql().run(&[
        SOURCES,
        &format!("CREATE STREAM TABLE revenue_by_region AS {QUERY}"),
    ]);
    assert!(
        output.ends_with("CREATE STREAM TABLE\n"),
        "psql prints the command tag: {output}"
    );
    stack
}

#[tokio::test]
async fn follows_writes_through_and_beside_the_pooler() {
    for major in majors() {
        let stack = stack_with_example(major);
        let (direct, pooled) = (stack.direct().await, stack.pooled().await);
        // Not empty even for a moment: it was created with its data.
        assert_eq!(
            scalar(&direct, "SELECT count(*) FROM revenue_by_region")
                .await
                .as_deref(),
            Some("3")
        );
        converges(&direct, "revenue_by_region", QUERY, SHORTLY).await;
        let steps = [
            "INSERT INTO orders (customer_id, amount) VALUES (1, 10.50), (2, 7), (3, NULL)",
            "UPDATE orders SET amount = amount + 1 WHERE id % 4 = 0",
            "UPDATE customers SET region = 'west' WHERE id = 2",
            "DELETE FROM orders WHERE customer_id = 1",
            "INSERT INTO customers VALUES (4, 'east'); INSERT INTO orders (customer_id, amount) VALUES (4, 1)",
            "BEGIN; DELETE FROM customers WHERE id = 3; INSERT INTO customers VALUES (3, 'south'); COMMIT",
            "TRUNCATE orders",
            "INSERT INTO orders (customer_id, amount) SELECT 1 + i % 4, i FROM generate_series(1, 5000) i",
        ];
        for step in steps {
            for (client, way) in [(&pooled, "through"), (&direct, "beside")] {
                client.batch_execute(step).await.unwrap_or_else(|error| {
                    // The second time round the inserted customer is there already.
                    assert_eq!(
                        error.code().map(|code| code.code()),
                        Some("23505"),
                        "{step}: {error:?}"
                    );
                });
                let took = converges(&direct, "revenue_by_region", QUERY, SHORTLY).await;
                println!("PostgreSQL {major}, {way} the pooler, {took:?}: {step}");
            }
        }
        // Rolled back work leaves no trace; through the pooler it reads the same as beside it.
        pooled
            .batch_execute("BEGIN; DELETE FROM orders; ROLLBACK")
            .await
            .expect("a rolled back delete");
        tokio::time::sleep(Duration::from_millis(300)).await;
        converges(&pooled, "revenue_by_region", QUERY, Duration::ZERO).await;
        // One that fails and is tried again converges, too, only later and at twice the cost.
        assert_eq!(
            scalar(
                &direct,
                "SELECT string_agg(DISTINCT error, ', ') FROM pgtrickle.refresh_history"
            )
            .await,
            None,
            "PostgreSQL {major}: refreshes failed"
        );
        stack.psql().run(&["DROP STREAM TABLE revenue_by_region"]);
        assert_eq!(
            scalar(&direct, "SELECT to_regclass('revenue_by_region')").await,
            None
        );
        assert_eq!(
            scalar(&direct, "SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('orders'::regclass, 'customers'::regclass)
                             AND NOT tgisinternal").await.as_deref(),
            Some("0"),
            "no trigger stays on a source"
        );
    }
}

#[tokio::test]
async fn looks_like_a_plain_table() {
    for major in majors() {
        let stack = stack_with_example(major);
        let direct = stack.direct().await;
        let columns = scalar(
            &direct,
            "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
             FROM pg_attribute WHERE attrelid = 'revenue_by_region'::regclass AND attnum > 0",
        )
        .await;
        assert_eq!(
            columns.as_deref(),
            Some("region text, orders bigint, revenue numeric")
        );
        let kind = scalar(
            &direct,
            "SELECT concat(relkind, relpersistence, pg_get_userbyid(relowner), relhastriggers, relrowsecurity)
             FROM pg_class WHERE oid = 'revenue_by_region'::regclass",
        )
        .await;
        assert_eq!(
            kind.as_deref(),
            Some("rpappff"),
            "an ordinary, permanent table of its creator"
        );

        let described = stack.psql().aligned().run(&["\\d revenue_by_region"]);
        assert!(
            described.contains("Table \"public.revenue_by_region\""),
            "{described}"
        );
        assert!(
            !described.contains("Triggers:") && !described.contains("pgtrickle"),
            "{described}"
        );
        let rows = stack
            .psql()
            .aligned()
            .run(&["SELECT * FROM revenue_by_region ORDER BY region"]);
        assert!(rows.starts_with(" region | orders | revenue"), "{rows}");
        assert!(rows.contains("(3 rows)"), "{rows}");
        // Only what belongs to it shows in the user's schemas.
        let tables = stack.psql().run(&["\\dt"]);
        assert_eq!(tables.lines().count(), 3, "{tables}");

        // A user's own index is kept and maintained.
        stack
            .psql()
            .run(&["CREATE INDEX mine ON revenue_by_region (revenue)"]);
        stack
            .psql()
            .run(&["INSERT INTO orders (customer_id, amount) VALUES (1, 100000)"]);
        converges(&direct, "revenue_by_region", QUERY, SHORTLY).await;
        direct
            .batch_execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
            .await
            .expect("settings");
        let by_index = scalar(
            &direct,
            "SELECT region FROM revenue_by_region WHERE revenue > 50000",
        )
        .await;
        assert_eq!(by_index.as_deref(), Some("north"));
        let plan = stack.direct_psql().run(&[
            "SET enable_seqscan = off",
            "EXPLAIN SELECT * FROM revenue_by_region WHERE revenue > 50000",
        ]);
        assert!(plan.contains("mine"), "{plan}");
    }
}

/// A dump by the database's owner works, and the stream table in it is a plain table with its rows.
#[tokio::test]
async fn dumps_and_restores_as_a_plain_table() {
    let stack = stack_with_example(15);
    let direct = stack.direct().await;
    let one = stack
        .direct_psql()
        .program("pg_dump", &["-t", "revenue_by_region"]);
    assert!(one.success, "{}", one.stderr);
    let definition: Vec<&str> = one
        .stdout
        .lines()
        .skip_while(|line| !line.starts_with("CREATE TABLE"))
        .take_while(|line| !line.starts_with(");"))
        .map(str::trim)
        .collect();
    assert_eq!(
        definition,
        [
            "CREATE TABLE public.revenue_by_region (",
            "region text,",
            "orders bigint,",
            "revenue numeric"
        ],
        "{}",
        one.stdout
    );
    assert!(!one.stdout.contains("pgtrickle."), "{}", one.stdout);
    assert!(!one.stdout.contains("CREATE TRIGGER"), "{}", one.stdout);

    let all = stack
        .direct_psql()
        .program("pg_dump", &["--no-owner", "-f", "/dev/stdout"]);
    assert!(all.success, "a dump of the whole database: {}", all.stderr);
    let file = std::env::temp_dir().join(format!("pgcat-dump-{}.sql", std::process::id()));
    std::fs::write(&file, &all.stdout).expect("the dump is written");
    stack
        .postgres
        .psql("postgres", "postgres")
        .run(&["CREATE DATABASE copy OWNER app"]);
    let copy = stack.postgres.psql("postgres", "copy");
    let restored = copy.program(
        "psql",
        &[
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-f",
            &file.display().to_string(),
        ],
    );
    std::fs::remove_file(&file).expect("the dump is removed");
    assert!(restored.success, "restore: {}", restored.stderr);
    let rows = "SELECT string_agg(t::text, ';' ORDER BY t::text) FROM revenue_by_region t";
    assert_eq!(
        Some(copy.run(&[rows]).trim_end().to_owned()),
        scalar(&direct, rows).await
    );
}
