//! The oracle: random writes by several connections (transactions, savepoints, rollbacks, late commits), refreshes all the
//! while, and at every quiet point each stream table is its query, row image by row image.
//!
//! `ORACLE_SECONDS` sets the length (default 10), `ORACLE_SEED` the seed.

mod engine_support;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use engine_support::{connect, create, differences, memory, refresh};
use stream_tables::engine;
use test_support::Postgres;
use tokio::task::LocalSet;

const SCHEMA: &str = "
    CREATE TABLE customers (id int PRIMARY KEY, region text, tier int);
    CREATE TABLE products (id int PRIMARY KEY, price numeric(10,2), tags text[], free numeric);
    CREATE TABLE orders (id serial PRIMARY KEY, customer_id int, product_id int, amount numeric(10,2), quantity int,
        weight float8, at timestamptz DEFAULT '2024-01-01');
    CREATE TABLE events (kind text, value bigint, span interval, free numeric);
    CREATE TABLE parts (id int, bucket int, value int) PARTITION BY RANGE (bucket);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (50);
    CREATE TABLE parts_high (value int, bucket int, id int);
    ALTER TABLE parts ATTACH PARTITION parts_high FOR VALUES FROM (50) TO (100);
    CREATE INDEX ON orders (customer_id);
    CREATE VIEW big AS SELECT o.id AS order_id, o.customer_id, o.amount FROM orders o WHERE o.amount > 20;
    INSERT INTO customers SELECT i, CASE WHEN i % 7 = 0 THEN NULL ELSE 'r' || i % 4 END, i % 3 FROM generate_series(1, 30) i;
    INSERT INTO products SELECT i, i * 1.25, ARRAY['t' || i % 3, 't' || i % 2], (i % 5)::numeric FROM generate_series(1, 20) i;
    INSERT INTO orders (customer_id, product_id, amount, quantity, weight)
        SELECT i % 30 + 1, i % 20 + 1, i % 100, i % 9, (i % 16) / 2.0 FROM generate_series(1, 300) i;
    INSERT INTO parts SELECT i, i % 100, i % 7 FROM generate_series(1, 100) i;";

/// Name, query, effective mode. Each query has one answer: GROUP BY of 1.0 and 1.00 would show either, as PostgreSQL pleases.
const QUERIES: &[(&str, &str, &str)] = &[
    ("by_region", "SELECT c.region, count(*) AS orders, sum(o.amount) AS revenue, avg(o.amount) AS mean, avg(o.quantity) AS q
        FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region", "incremental"),
    ("three", "SELECT o.id, c.region, p.price * o.quantity AS total FROM orders o, customers c, products p
        WHERE c.id = o.customer_id AND p.id = o.product_id AND c.tier < 2", "incremental"),
    ("selfjoin", "SELECT a.id, b.id AS other FROM customers a JOIN customers b ON a.tier = b.tier AND a.id < b.id", "incremental"),
    ("united", "SELECT kind, value::numeric AS v FROM events UNION ALL SELECT region, tier FROM customers
        UNION ALL SELECT kind, 1 FROM events WHERE value > 2", "incremental"),
    ("extremes", "SELECT c.region, min(o.amount), max(o.amount) AS top, sum(o.weight) AS w, count(DISTINCT o.product_id) AS n
        FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region HAVING count(*) > 3", "incremental"),
    ("kinds", "SELECT DISTINCT kind, value % 3 AS rest FROM events", "incremental"),
    ("spans", "SELECT DISTINCT ON (kind) kind, value, span FROM events ORDER BY kind, value, span::text, span", "incremental"),
    ("total", "SELECT count(*), sum(amount) AS s, max(quantity), sum(quantity) FILTER (WHERE quantity > 4) AS big FROM orders", "incremental"),
    ("counted", "SELECT count(*), count(value) AS v, sum(value) AS s, avg(value) AS a FROM events", "incremental"),
    ("outer_side", "SELECT c.id, o.id AS order_id FROM customers c LEFT JOIN orders o ON o.customer_id = c.id", "incremental"),
    ("windowed", "SELECT id, rank() OVER (PARTITION BY customer_id ORDER BY amount, id) AS r FROM orders", "incremental"),
    ("nested", "SELECT b.order_id, s.region, s.n FROM big b JOIN (SELECT id, region, tier + 1 AS n FROM customers WHERE tier > 0) s
        ON s.id = b.customer_id", "incremental"),
    ("with_union", "WITH ids AS (SELECT customer_id AS id, amount FROM orders WHERE quantity < 5
            UNION ALL SELECT id, tier FROM customers)
        SELECT c.region, i.amount FROM customers c JOIN ids i USING (id)", "incremental"),
    ("by_expression", "SELECT CASE WHEN o.quantity > 4 THEN 'many' ELSE c.region END AS k, sum(o.quantity) + count(*) AS n,
        sum(o.quantity) * 2 AS m FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY 1", "incremental"),
    ("loose", "SELECT round(p.free, 2) AS free, count(*) AS n, sum(e.free) AS s, string_agg(e.kind, ',' ORDER BY e.kind, e.value) AS kinds
        FROM products p JOIN events e ON e.value = p.id GROUP BY 1", "incremental"),
    ("peaks", "SELECT c.region, max(o.quantity) AS q, min(o.at) FILTER (WHERE o.quantity > 2) AS first, max(c.region) AS r, count(*) AS n
        FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region", "incremental"),
    ("free", "SELECT kind, sum(free) AS s, avg(free) AS a, sum(value * 1.5) AS v FROM events GROUP BY kind", "incremental"),
    ("duplicates", "SELECT kind, span, free FROM events", "incremental"),
    ("tags", "SELECT t.tag, p.id, p.tags FROM products p, LATERAL unnest(p.tags) t(tag)", "incremental"),
    ("partitioned", "SELECT value, count(*) AS n, sum(bucket) AS b FROM parts GROUP BY value", "incremental"),
    ("chain", "SELECT r.region, r.orders, c.id FROM by_region r JOIN customers c ON c.region IS NOT DISTINCT FROM r.region", "incremental"),
    ("left_grouped", "SELECT c.region, count(o.id) AS n, sum(o.amount) AS s FROM customers c LEFT JOIN orders o
        ON o.customer_id = c.id AND o.quantity > 2 GROUP BY c.region", "incremental"),
    ("left_chain", "SELECT o.id, c.region, p.price, e.kind FROM orders o LEFT JOIN customers c ON c.id = o.customer_id
        LEFT JOIN products p ON p.id = o.product_id AND c.tier > 0 LEFT JOIN events e ON e.value = p.id", "incremental"),
    ("right_side", "SELECT o.id, c.id AS customer FROM orders o RIGHT JOIN customers c ON o.customer_id = c.id WHERE c.tier < 2", "incremental"),
    ("full_side", "SELECT e.kind, e.value, p.id, p.price FROM events e FULL JOIN products p ON p.id = e.value", "incremental"),
    ("full_using", "SELECT value, a.kind AS l, b.n FROM events a FULL JOIN (SELECT tier::bigint AS value, id AS n FROM customers) b USING (value)", "incremental"),
    ("left_of_join", "SELECT c.id, x.id AS order_id, x.price FROM customers c LEFT JOIN (SELECT o.id, o.customer_id, p.price FROM orders o
        JOIN products p ON p.id = o.product_id) x ON x.customer_id = c.id", "incremental"),
    ("left_of_tree", "SELECT c.id, o.id AS order_id, p.price FROM customers c LEFT JOIN (orders o LEFT JOIN products p ON p.id = o.product_id)
        ON o.customer_id = c.id", "incremental"),
    ("semi", "SELECT c.id, c.region FROM customers c WHERE EXISTS (SELECT FROM orders o WHERE o.customer_id = c.id AND o.amount > 50)", "incremental"),
    ("semi_in", "SELECT c.id FROM customers c WHERE c.id IN (SELECT o.customer_id FROM orders o WHERE o.quantity > 4) AND c.tier = 1", "incremental"),
    ("anti", "SELECT c.id, c.region FROM customers c WHERE NOT EXISTS (SELECT FROM orders o JOIN products p ON p.id = o.product_id
        WHERE o.customer_id = c.id AND p.price > 10)", "incremental"),
    ("not_in", "SELECT p.id FROM products p WHERE p.id NOT IN (SELECT e.value FROM events e)", "incremental"),
    ("under_or", "SELECT c.id FROM customers c WHERE c.tier = 2 OR c.region IN (SELECT e.kind FROM events e) OR NOT EXISTS (SELECT FROM orders o WHERE o.customer_id = c.id)", "incremental"),
    ("in_targets", "SELECT c.id, c.id IN (SELECT o.customer_id FROM orders o) AS has, CASE WHEN EXISTS (SELECT FROM events e WHERE e.kind = c.region) THEN 1 ELSE 0 END AS e FROM customers c", "incremental"),
    ("scalar", "SELECT c.id, (SELECT sum(o.amount) FROM orders o WHERE o.customer_id = c.id) AS s, (SELECT count(*) FROM events) AS n FROM customers c", "incremental"),
    ("above_average", "SELECT o.id, o.amount FROM orders o WHERE o.amount > (SELECT avg(x.amount) FROM orders x)", "incremental"),
    ("compared", "SELECT p.id FROM products p WHERE p.price >= ALL (SELECT o.amount FROM orders o WHERE o.product_id = p.id)", "incremental"),
    ("best", "SELECT c.id, t.id AS order_id, t.amount FROM customers c, LATERAL (SELECT o.id, o.amount FROM orders o WHERE o.customer_id = c.id
        ORDER BY o.amount DESC NULLS LAST, o.id LIMIT 2) t", "incremental"),
    ("lateral_sum", "SELECT c.id, t.s FROM customers c LEFT JOIN LATERAL (SELECT sum(o.amount) AS s FROM orders o WHERE o.customer_id = c.id) t ON true", "incremental"),
    ("of_groups", "SELECT c.region, t.n FROM customers c JOIN (SELECT o.customer_id, count(*) AS n FROM orders o GROUP BY o.customer_id) t ON t.customer_id = c.id", "incremental"),
    ("groups_of_groups", "SELECT n, count(*) AS customers FROM (SELECT customer_id, count(*) AS n FROM orders GROUP BY customer_id) t GROUP BY n", "incremental"),
    ("left_groups", "SELECT c.id, t.n FROM customers c LEFT JOIN (SELECT customer_id, count(*) AS n FROM orders GROUP BY 1 HAVING count(*) > 2) t ON t.customer_id = c.id", "incremental"),
    ("exists_groups", "SELECT c.id FROM customers c WHERE c.id IN (SELECT customer_id FROM orders GROUP BY customer_id HAVING sum(amount) > 100)", "incremental"),
    ("rolled", "SELECT c.region, c.tier, count(*) AS n, sum(o.quantity) AS q, GROUPING(c.region, c.tier) AS g FROM customers c JOIN orders o ON o.customer_id = c.id
        GROUP BY ROLLUP (c.region, c.tier)", "incremental"),
    ("cubed", "SELECT kind, value % 2 AS odd, count(*) AS n FROM events GROUP BY CUBE (kind, (value % 2)) HAVING count(*) > 1", "incremental"),
    // Of 1 and 1.00 PostgreSQL's max is the one that it comes to last, which goes by its plan; so the order says which.
    ("sets", "SELECT kind, value, max(round(free, 2)) AS m, (array_agg(free ORDER BY free DESC, free::text))[1] AS f, count(*) AS n FROM events GROUP BY GROUPING SETS ((kind), (value), ())", "incremental"),
    ("windows", "SELECT id, customer_id, sum(quantity) OVER (PARTITION BY customer_id ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS s,
        lag(id) OVER w AS l, count(*) OVER (PARTITION BY customer_id, product_id) AS n FROM orders WINDOW w AS (PARTITION BY customer_id ORDER BY id)", "incremental"),
    ("window_all", "SELECT id, row_number() OVER (ORDER BY id) AS n FROM customers", "incremental"),
    ("window_over_groups", "SELECT region, count(*) AS n, rank() OVER (ORDER BY count(*) DESC, region) AS r FROM customers GROUP BY region", "incremental"),
    ("top_per_group", "SELECT * FROM (SELECT id, customer_id, row_number() OVER (PARTITION BY customer_id ORDER BY amount DESC, id) AS n FROM orders) t WHERE n <= 2", "incremental"),
    ("intersect_", "SELECT value FROM events INTERSECT SELECT tier FROM customers", "incremental"),
    ("except_", "SELECT id FROM customers EXCEPT SELECT customer_id FROM orders", "incremental"),
    ("except_all_", "SELECT kind FROM events EXCEPT ALL SELECT region FROM customers", "incremental"),
    ("intersect_all_", "SELECT value FROM events INTERSECT ALL SELECT quantity FROM orders", "incremental"),
    ("union_", "SELECT kind FROM events UNION SELECT region FROM customers", "incremental"),
    ("top", "SELECT id, amount FROM orders ORDER BY amount DESC NULLS LAST, id LIMIT 5 OFFSET 2", "incremental"),
    ("top_groups", "SELECT customer_id, count(*) AS n FROM orders GROUP BY customer_id ORDER BY count(*) DESC, customer_id LIMIT 3", "incremental"),
    ("top_joined", "SELECT o.id, c.region, (SELECT count(*) FROM events e WHERE e.value = o.quantity) AS n FROM orders o LEFT JOIN customers c
        ON c.id = o.customer_id ORDER BY c.tier DESC NULLS LAST, o.id LIMIT 7", "incremental"),
    ("with_ties", "SELECT id, quantity FROM orders ORDER BY quantity NULLS LAST FETCH FIRST 3 ROWS WITH TIES", "incremental"),
    ("distinct_groups", "SELECT DISTINCT count(*) AS n FROM orders GROUP BY customer_id", "incremental"),
    ("key_and_subselect", "SELECT c.region, (SELECT count(*) FROM events e WHERE e.kind = c.region) AS e, count(*) AS n FROM customers c GROUP BY c.region
        HAVING count(*) > (SELECT min(tier) FROM customers)", "incremental"),
    ("cte_twice", "WITH t AS (SELECT customer_id, sum(amount) AS s FROM orders GROUP BY customer_id)
        SELECT a.customer_id, b.customer_id AS other FROM t a JOIN t b ON a.s = b.s AND a.customer_id < b.customer_id", "incremental"),
    ("days", "SELECT date_trunc('day', at) AS day, count(*) AS n FROM orders GROUP BY 1", "incremental"),
];

/// Stream tables on stream tables: name, query, and the same over tables only.
const ON_TOP: &[(&str, &str, &str)] = &[
    (
        "g_sums",
        "SELECT customer_id, sum(amount) AS s FROM orders GROUP BY customer_id",
        "SELECT customer_id, sum(amount) AS s FROM orders GROUP BY customer_id",
    ),
    (
        "g_counts",
        "SELECT customer_id, count(amount) AS n, count(*) AS m FROM orders GROUP BY customer_id",
        "SELECT customer_id, count(amount) AS n, count(*) AS m FROM orders GROUP BY customer_id",
    ),
    (
        "g_both",
        "SELECT customer_id, s, n, m FROM g_sums JOIN g_counts USING (customer_id)",
        "SELECT customer_id, sum(amount) AS s, count(amount) AS n, count(*) AS m FROM orders WHERE customer_id IS NOT NULL GROUP BY customer_id",
    ),
    (
        "g_regions",
        "SELECT c.region, sum(g.s) AS s, count(g.m) AS n, max(g.n) AS most FROM customers c LEFT JOIN g_both g ON g.customer_id = c.id GROUP BY c.region",
        "SELECT c.region, sum(g.s) AS s, count(g.m) AS n, max(g.n) AS most FROM customers c LEFT JOIN
            (SELECT customer_id, sum(amount) AS s, count(amount) AS n, count(*) AS m FROM orders GROUP BY customer_id) g ON g.customer_id = c.id
            GROUP BY c.region",
    ),
];

/// A rebuild for another reason than that a wrong change might be hidden: once, when a stage comes to be shared.
fn is_shared_now(outcome: &engine::RefreshOutcome) -> bool {
    outcome.reason.as_deref() == Some("parts of it are shared with others now")
}

/// Refreshes them together until no other transaction is in the way; returns whether any of it was not incremental.
async fn refresh_together(c: &mut tokio_postgres::Client, ids: &[engine::StreamTableId]) -> bool {
    loop {
        match engine::refresh_together(c, &memory(), ids).await {
            Ok(refreshed) if refreshed.len() == ids.len() => {
                let mut outcomes = refreshed
                    .into_iter()
                    .map(|refreshed| match refreshed.result {
                        Ok(outcome) => outcome,
                        Err(error) => panic!("refresh of {}: {error}", refreshed.id),
                    });
                return outcomes.any(|outcome| outcome.mode == "full" && !is_shared_now(&outcome));
            }
            Ok(_) => {}
            Err(error) if error.is_transient() => {}
            Err(error) => panic!("a common refresh: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A small generator: the same seed gives the same statements.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }

    fn write(&mut self) -> String {
        let (a, b, c) = (self.below(30) + 1, self.below(20) + 1, self.below(100));
        let region = self.of(&["'r1'", "'r2'", "NULL", "'new'", "''"]);
        let kind = self.of(&["'a'", "'b'", "NULL", "'A'"]);
        let span = self.of(&["'1 month'", "'30 days'", "NULL", "'1 hour'"]);
        let free = self.of(&[
            "1",
            "1.0",
            "1.00",
            "NULL",
            "'NaN'",
            "0",
            "-2.50",
            "'Infinity'",
            "3.14159",
        ]);
        match self.below(26) {
            0..=3 => format!(
                "INSERT INTO orders (customer_id, product_id, amount, quantity, weight) VALUES ({a}, {b}, {c}.25, {b} % 9, {b} / 2.0),
                 ({b}, {a} % 20, NULL, NULL, NULL)"
            ),
            4 => format!("UPDATE orders SET amount = amount + 1, quantity = quantity + 1 WHERE customer_id = {a}"),
            5 => format!("UPDATE orders SET at = '2024-01-01'::timestamptz + interval '{a} hours' WHERE id % 20 = {b} % 20"),
            6 => format!("UPDATE orders SET customer_id = {b} WHERE customer_id = {a} AND id % 3 = 0"),
            7 | 8 => format!("DELETE FROM orders WHERE id % 50 = {c} % 50"),
            9 => format!("UPDATE customers SET region = {region} WHERE id = {a}"),
            10 => format!("UPDATE customers SET tier = (tier + 1) % 3 WHERE id % 5 = {b} % 5"),
            11 => format!("DELETE FROM customers WHERE id = {a}"),
            12 => format!("INSERT INTO customers VALUES ({a}, {region}, {b} % 3) ON CONFLICT (id) DO UPDATE SET region = excluded.region"),
            13 => format!("UPDATE products SET price = price + 0.5, free = {free} WHERE id = {b}"),
            14 => format!("UPDATE products SET tags = tags || 'x{}'::text WHERE id = {b} AND cardinality(tags) < 5", b % 2),
            15..=17 => format!("INSERT INTO events VALUES ({kind}, {b} % 6, {span}, {free}), ({kind}, {b} % 6, {span}, {free})"),
            18 => format!("DELETE FROM events WHERE ctid IN (SELECT ctid FROM events WHERE value = {b} % 6 LIMIT 1)"),
            19 => format!("UPDATE events SET span = {span}, free = {free} WHERE kind IS NOT DISTINCT FROM {kind} AND value = {b} % 6"),
            20 => format!("UPDATE events SET value = {b} % 6 WHERE value = {a} % 6"),
            21 => format!("INSERT INTO parts VALUES ({a}, {c}, {b} % 7); INSERT INTO parts_low VALUES ({a}, {b}, {b} % 7)"),
            22 => format!("UPDATE parts SET bucket = (bucket + {c}) % 100 WHERE id = {a}"),
            23 => format!("DELETE FROM parts_high WHERE id = {a}; UPDATE parts_low SET value = {b} % 7 WHERE id = {a}"),
            24 => self.of(&["TRUNCATE events", "TRUNCATE parts_low", "DELETE FROM events WHERE value > 2", "SELECT 1", "SELECT 1"]).to_owned(),
            _ => format!("UPDATE customers SET id = id WHERE id = {a}; INSERT INTO events SELECT 'copy', tier, NULL, NULL FROM customers LIMIT 3"),
        }
    }
}

async fn writer(server: Rc<Postgres>, seed: u64, stop: Rc<Cell<bool>>, writes: Rc<Cell<u64>>) {
    let c = connect(&server).await;
    let mut random = Random(seed | 1);
    while !stop.get() {
        let write = random.write();
        writes.set(writes.get() + 1);
        let result = match random.below(8) {
            0 => {
                let more = random.write();
                let pause = random.below(60);
                c.batch_execute(&format!("BEGIN; {write}; SELECT pg_sleep({pause} / 1000.0); {more}; COMMIT")).await
            }
            1 => c.batch_execute(&format!("BEGIN; {write}; SAVEPOINT s; {}; ROLLBACK TO s; {}; COMMIT", random.write(), random.write())).await,
            2 => c.batch_execute(&format!("BEGIN; {write}; ROLLBACK")).await,
            3 => c.batch_execute(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {write}; SAVEPOINT s; {}; RELEASE s; COMMIT", random.write())).await,
            _ => c.batch_execute(&write).await,
        };
        if result.is_err() {
            // Deadlocks, serialization failures and unique violations among the writers are theirs.
            let _ = c.batch_execute("ROLLBACK").await;
        }
        tokio::time::sleep(Duration::from_millis(random.below(6))).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn every_quiet_point_is_exact() {
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or(default)
    };
    let length = Duration::from_secs(number("ORACLE_SECONDS", 10));
    let seed = number("ORACLE_SEED", u64::from(std::process::id()) * 7919);
    println!("seed {seed}");
    LocalSet::new()
        .run_until(async move {
            let server = Rc::new(Postgres::start(u32::try_from(number("ORACLE_MAJOR", 15)).unwrap()));
            let mut c = connect(&server).await;
            c.batch_execute(SCHEMA).await.unwrap();
            let mut ids = Vec::new();
            for (name, query, mode) in QUERIES {
                let id = create(&mut c, name, query).await.unwrap_or_else(|e| panic!("{name}: {e}"));
                let row = c.query_one("SELECT effective_mode, reason FROM pgtrickle.stream_tables WHERE name = $1", &[name]).await.unwrap();
                assert_eq!(row.get::<_, String>(0), *mode, "{name}: {:?}", row.get::<_, Option<String>>(1));
                ids.push(id);
            }
            let mut group = Vec::new();
            for (name, query, _) in ON_TOP {
                group.push(create(&mut c, name, query).await.unwrap_or_else(|e| panic!("{name}: {e}")));
            }
            let begin = Instant::now();
            let (writes, mut refreshes, mut incremental, mut points) = (Rc::new(Cell::new(0)), 0_u64, 0_u64, 0);
            let mut round = seed;
            while begin.elapsed() < length {
                let stop = Rc::new(Cell::new(false));
                let mut writers = Vec::new();
                for _ in 0..8 {
                    round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    writers.push(tokio::task::spawn_local(writer(server.clone(), round, stop.clone(), writes.clone())));
                }
                let until = Instant::now() + Duration::from_millis(1500);
                while Instant::now() < until {
                    for id in engine::pending(&mut c, &ids).await.unwrap() {
                        let outcome = refresh(&mut c, id).await;
                        refreshes += 1;
                        incremental += u64::from(outcome.mode == "incremental");
                        // A rebuild would hide a wrong delta: only a TRUNCATE may cause one.
                        assert!(
                            outcome.mode != "full" || is_shared_now(&outcome) || outcome.reason.as_deref().is_some_and(|r| r.contains("truncated")),
                            "{id}: {:?}, seed {seed}",
                            outcome.reason
                        );
                    }
                    assert!(!refresh_together(&mut c, &group).await, "a full refresh would hide a wrong delta, seed {seed}");
                    engine::cleanup_buffers(&mut c).await.unwrap();
                }
                stop.set(true);
                for writer in writers {
                    writer.await.unwrap();
                }
                for id in &ids {
                    refresh(&mut c, *id).await;
                }
                refresh_together(&mut c, &group).await;
                points += 1;
                for (name, _, over_tables) in ON_TOP {
                    assert_eq!(differences(&mut c, name, over_tables).await, [""; 0], "{name} at quiet point {points}, seed {seed}");
                }
                for (name, query, _) in QUERIES {
                    assert_eq!(differences(&mut c, name, query).await, [""; 0], "{name} at quiet point {points}, seed {seed}");
                }
            }
            println!("{} writes, {refreshes} refreshes ({incremental} incremental), {points} quiet points", writes.get());
            assert!(incremental * 2 > refreshes, "most refreshes are incremental");
            let rebuilt = "SELECT coalesce(string_agg(DISTINCT h.reason, '; '), '') FROM pgtrickle.history h JOIN pgtrickle.catalog c ON c.id = h.stream_table
                WHERE c.shares IS NOT NULL AND h.mode = 'full' AND h.reason <> 'it had no data yet' AND h.reason NOT LIKE '%truncated%'
                UNION ALL SELECT count(*)::text FROM pgtrickle.catalog WHERE shares IS NOT NULL";
            let rows = c.query(rebuilt, &[]).await.unwrap();
            println!("{} shared stages", rows[1].get::<_, String>(0));
            assert_eq!(rows[0].get::<_, String>(0), "", "rebuilds of shared stages, seed {seed}");
            for id in ids.iter().chain(&group).rev() {
                tokio_postgres::Client::batch_execute(&c, "BEGIN").await.unwrap();
                engine::drop(&mut c, *id, false).await.unwrap();
                tokio_postgres::Client::batch_execute(&c, "COMMIT").await.unwrap();
            }
            let left = c
                .query_one(
                    "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname ~ '_[0-9]+$')
                        + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pgtrickle%')",
                    &[],
                )
                .await
                .unwrap();
            assert_eq!(left.get::<_, i64>(0), 0, "nothing is left behind");
        })
        .await;
}
