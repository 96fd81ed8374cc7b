//! The sources and the stream tables over them.

/// Sources with and without keys, duplicates, NULLs, a view, partitions, and types whose `=` is
/// coarser than what a user sees (numeric scale, -0).
pub const SOURCES: &str = "
CREATE TABLE customers (id int PRIMARY KEY, region text, name text NOT NULL, active boolean NOT NULL);
CREATE TABLE orders (id bigserial PRIMARY KEY, customer_id int NOT NULL, amount numeric(12,2), note text,
    placed timestamptz NOT NULL DEFAULT now());
CREATE INDEX ON orders (customer_id);
CREATE TABLE items (order_id bigint, sku text, qty int, price float8);
CREATE INDEX ON items (order_id);
CREATE TABLE events (k int, v int, tag text, f float8);
CREATE INDEX ON events (k);
CREATE TABLE nums (a int, b numeric, d date, j jsonb);
CREATE TABLE parted (id int NOT NULL, part int NOT NULL, v int) PARTITION BY LIST (part);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES IN (0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1, 2);
CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
CREATE TABLE accounts (id int PRIMARY KEY, branch int NOT NULL, balance bigint NOT NULL);
CREATE VIEW active_customers AS SELECT id, region, upper(name) AS loud FROM customers WHERE active;

INSERT INTO customers SELECT i, (ARRAY['north','south','east','west',NULL])[1 + i % 5], 'c' || i, i % 3 > 0
    FROM generate_series(1, 60) i;
INSERT INTO orders (customer_id, amount, note) SELECT 1 + i % 60, i % 200, 'first' FROM generate_series(1, 400) i;
INSERT INTO items SELECT i % 400, 's' || i % 17, i % 5, (i % 40) / 4.0 FROM generate_series(1, 600) i;
INSERT INTO events SELECT i % 150, i % 30, 't' || i % 8, i / 8.0 FROM generate_series(1, 400) i;
INSERT INTO nums SELECT i % 20, i / 4.0, date '2024-01-01' + i % 9, jsonb_build_object('n', i % 6) FROM generate_series(1, 200) i;
INSERT INTO parted SELECT i, i % 5, i FROM generate_series(1, 200) i;
INSERT INTO accounts SELECT i, i % 4, 1000 FROM generate_series(1, 40) i;
";

/// The sum of all balances, which every transaction of the load keeps.
pub(crate) const ACCOUNTS: i32 = 40;

/// A stream table of the load.
#[derive(Debug, Clone, Copy)]
pub struct StreamTable {
    pub name: &'static str,
    pub query: &'static str,
    /// `WITH (…)`, or empty.
    options: &'static str,
    /// Select list both sides are compared by; empty: all columns as they are.
    compared: &'static str,
}

impl StreamTable {
    pub fn create(&self) -> String {
        format!(
            "CREATE STREAM TABLE {} {} AS {}",
            self.name, self.options, self.query
        )
    }

    /// The queries to compare: of the stored table and of its definition.
    pub fn sides(&self) -> (String, String) {
        let columns = if self.compared.is_empty() {
            "*"
        } else {
            self.compared
        };
        (
            format!("SELECT {columns} FROM {}", self.name),
            format!("SELECT {columns} FROM ({}) AS q", self.query),
        )
    }
}

const fn table(name: &'static str, query: &'static str) -> StreamTable {
    StreamTable {
        name,
        query,
        // A full refresh, where it is cheaper, would hide a wrong delta.
        options: "WITH (refresh_mode = incremental)",
        compared: "",
    }
}

/// One of each kind the incremental path knows, and one it leaves to a full recompute.
pub fn stream_tables() -> Vec<StreamTable> {
    vec![
        table("st_filter", "SELECT id, amount * 2 AS double, note FROM orders WHERE amount > 50"),
        table(
            "st_revenue",
            "SELECT c.region, count(*) AS orders, sum(o.amount) AS revenue
             FROM orders o JOIN customers c ON c.id = o.customer_id GROUP BY c.region",
        ),
        table(
            "st_three",
            "SELECT c.name, o.id, i.sku, i.qty * i.price AS cost
             FROM customers c, orders o JOIN items i ON i.order_id = o.id WHERE c.id = o.customer_id AND c.active",
        ),
        table("st_self", "SELECT a.v AS left_v, b.v AS right_v FROM events a JOIN events b USING (k) WHERE a.v < b.v"),
        table(
            "st_union",
            "SELECT id::bigint AS n, note AS t FROM orders WHERE note IS NOT NULL
             UNION ALL SELECT k, tag FROM events UNION ALL SELECT qty, sku FROM items WHERE qty > 2",
        ),
        table(
            "st_groups",
            "SELECT tag, count(*) AS n, count(v) AS nv, sum(v) AS s, avg(v) AS a, min(v) AS lo, max(v) AS hi
             FROM events GROUP BY tag",
        ),
        table("st_total", "SELECT count(*) AS n, sum(amount) AS s, min(id) AS lo, max(id) AS hi FROM orders"),
        table("st_distinct", "SELECT DISTINCT tag, k % 10 AS decade FROM events"),
        table(
            "st_having",
            "SELECT customer_id, count(*) AS n, avg(amount) AS a FROM orders GROUP BY customer_id HAVING count(*) > 5",
        ),
        table(
            "st_filtered_aggregate",
            "SELECT sku, count(*) FILTER (WHERE qty > 2) AS many, sum(qty) FILTER (WHERE price > 3) AS dear FROM items GROUP BY sku",
        ),
        StreamTable {
            // Sums of floats depend on the order of addition.
            compared: "tag, n, round(s::numeric, 6) AS s, round(a::numeric, 6) AS a",
            ..table("st_floats", "SELECT tag, count(*) AS n, sum(f / 3) AS s, avg(f) AS a FROM events GROUP BY tag")
        },
        table("st_range_join", "SELECT a.id, b.id AS other FROM accounts a JOIN accounts b ON a.balance > b.balance + 900"),
        table("st_images", "SELECT a, b, -b AS minus, d, j FROM nums WHERE a < 15"),
        StreamTable {
            // Which of 1.0 and 1.00 stands for their group is open, in PostgreSQL too.
            compared: "trim_scale(b) AS b, n",
            ..table("st_image_groups", "SELECT b, count(*) AS n FROM nums GROUP BY b")
        },
        table("st_numeric", "SELECT a, sum(b) AS s, avg(b) AS m, max(d) AS last FROM nums GROUP BY a"),
        table("st_parted", "SELECT part, count(*) AS n, sum(v) AS s FROM parted GROUP BY part"),
        table("st_parted_rows", "SELECT p.id, p.v, a.branch FROM parted p JOIN accounts a ON a.id = p.id % 40"),
        table("st_view", "SELECT region, loud, o.id FROM active_customers a JOIN orders o ON o.customer_id = a.id"),
        table("st_list", "SELECT customer_id, string_agg(note, ',' ORDER BY id) AS notes FROM orders GROUP BY customer_id"),
        table("st_money", "SELECT branch, sum(balance) AS balance FROM accounts GROUP BY branch"),
        table("st_all_money", "SELECT sum(balance) AS balance, count(*) AS n FROM accounts"),
        table("st_outer", "SELECT c.id, c.name, o.amount FROM customers c LEFT JOIN orders o ON o.customer_id = c.id"),
        table("st_window", "SELECT id, rank() OVER (PARTITION BY branch ORDER BY balance) AS place FROM accounts"),
        table("st_top", "SELECT id, amount FROM orders ORDER BY amount DESC NULLS LAST, id LIMIT 10"),
        table("st_except", "SELECT k FROM events EXCEPT SELECT id FROM customers"),
        table(
            "st_both_sides",
            "SELECT e.tag, e.v, a.branch FROM events e FULL JOIN accounts a ON a.id = e.k",
        ),
        table(
            "st_idle",
            "SELECT c.id, c.name FROM customers c WHERE NOT EXISTS (SELECT FROM orders o
                JOIN items i ON i.order_id = o.id WHERE o.customer_id = c.id AND i.qty > 2)",
        ),
        table(
            "st_sums",
            "SELECT c.id, (SELECT sum(o.amount) FROM orders o WHERE o.customer_id = c.id) AS total,
                c.id IN (SELECT k FROM events) AS seen FROM customers c",
        ),
        table(
            "st_of_groups",
            "SELECT n, count(*) AS customers FROM (SELECT customer_id, count(*) AS n FROM orders GROUP BY customer_id) t GROUP BY n",
        ),
        table(
            "st_rolled",
            "SELECT c.region, c.active, count(*) AS n, sum(o.amount) AS s FROM customers c JOIN orders o ON o.customer_id = c.id
             GROUP BY ROLLUP (c.region, c.active)",
        ),
        table(
            "st_best",
            "SELECT c.id, b.id AS order_id, b.amount FROM customers c, LATERAL (SELECT o.id, o.amount FROM orders o
                WHERE o.customer_id = c.id ORDER BY o.amount DESC NULLS LAST, o.id LIMIT 2) b",
        ),
        StreamTable {
            options: "",
            ..table(
                "st_recursive",
                "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT a.id, n.i FROM accounts a JOIN n ON n.i = a.branch",
            )
        },
        StreamTable {
            options: "WITH (schedule = '1s')",
            ..table("st_slow", "SELECT part, max(v) AS hi FROM parted GROUP BY part")
        },
    ]
}
