//! The statements, and what each does to the stream tables.

/// What a statement does. `{t}` is the source, `{s}` the grouped and `{s}_rows` the plain stream table.
pub struct Case {
    pub ddl: &'static str,
    pub outcome: Outcome,
    /// A write that works once the DDL is there, where [`WRITE`] does not any more.
    pub write_after: &'static str,
}

pub enum Outcome {
    /// Both stream tables follow; the queries with these replacements are what they equal.
    Follows(&'static [(&'static str, &'static str)]),
    /// Dependent objects still exist: the error names the stream table and nothing internal.
    Refused,
    /// The stream tables go with what they depend on.
    Dropped,
}

use Outcome::{Dropped, Follows, Refused};

pub const SOURCE: &str = "
    CREATE TABLE {t} (id int PRIMARY KEY, grp text, amount int, note text, spare int);
    CREATE SEQUENCE {t}_ids START 1001;
    CREATE SCHEMA {t}_other;
    INSERT INTO {t} SELECT i, 'g' || i % 5, i % 90, 'n', i FROM generate_series(1, 300) i";
pub const GROUPED: &str = "SELECT grp, count(*) AS n, sum(amount) AS total FROM {t} GROUP BY grp";
pub const ROWS: &str = "SELECT id, grp, amount FROM {t} WHERE amount >= 5";
/// Only where the case is about it: PostgreSQL refuses to retype a column that a user's view needs.
pub const VIEW: &str = "CREATE VIEW {t}_big AS SELECT id, grp, amount FROM {t} WHERE amount > 10";
/// The rows' source where the case is about a view.
pub const ROWS_OF_VIEW: &str = "SELECT id, amount FROM {t}_big";

pub const WRITE: &str = "INSERT INTO {t} (id, grp, amount) VALUES (nextval('{t}_ids'), 'g' || random()::int % 5, random() * 90)";

pub const CASES: &[Case] = &[
    case(
        "ALTER TABLE {t} ADD COLUMN extra text DEFAULT 'x'",
        Follows(&[]),
        WRITE,
    ),
    case("ALTER TABLE {t} DROP COLUMN spare", Follows(&[]), WRITE),
    case(
        "ALTER TABLE {t} RENAME COLUMN note TO remark",
        Follows(&[]),
        WRITE,
    ),
    case(
        "ALTER TABLE {t} RENAME COLUMN amount TO price",
        Follows(&[
            ("sum(amount)", "sum(price)"),
            ("amount >= 5", "price >= 5"),
            ("grp, amount FROM", "grp, price FROM"),
        ]),
        "INSERT INTO {t} (id, grp, price) VALUES (nextval('{t}_ids'), 'g7', 8)",
    ),
    case(
        "ALTER TABLE {t} ALTER COLUMN amount TYPE bigint",
        Follows(&[]),
        WRITE,
    ),
    case(
        "ALTER TABLE {t} ALTER amount TYPE numeric(12,2)",
        Follows(&[]),
        WRITE,
    ),
    case(
        "ALTER TABLE {t} ALTER COLUMN grp TYPE varchar(20) USING upper(grp)",
        Follows(&[]),
        WRITE,
    ),
    case(
        "ALTER TABLE {t} ADD COLUMN e int, DROP COLUMN spare, ALTER COLUMN amount SET DATA TYPE bigint",
        Follows(&[]),
        WRITE,
    ),
    case(
        "ALTER TABLE {t} RENAME TO {t}_new",
        Follows(&[("FROM {t}", "FROM {t}_new")]),
        "INSERT INTO {t}_new (id, grp, amount) VALUES (nextval('{t}_ids'), 'g8', 8)",
    ),
    case(
        "ALTER TABLE {t} SET SCHEMA {t}_other",
        Follows(&[("FROM {t}", "FROM {t}_other.{t}")]),
        "INSERT INTO {t}_other.{t} (id, grp, amount) VALUES (nextval('{t}_ids'), 'g8', 8)",
    ),
    case("ALTER TABLE {t} DROP COLUMN amount", Refused, WRITE),
    case(
        "ALTER TABLE {t} DROP COLUMN amount CASCADE",
        Dropped,
        "INSERT INTO {t} (id, grp) VALUES (nextval('{t}_ids'), 'g1')",
    ),
    case("DROP TABLE {t}", Refused, WRITE),
    case("DROP TABLE {t} CASCADE", Dropped, "SELECT 1"),
    case(
        "ALTER TABLE IF EXISTS {t}_missing ADD COLUMN x int",
        Follows(&[]),
        WRITE,
    ),
];

/// As [`CASES`], with the rows taken from a view.
pub const VIEW_CASES: &[Case] = &[
    case(
        "CREATE OR REPLACE VIEW {t}_big AS SELECT id, grp, amount FROM {t} WHERE amount > 50",
        Follows(&[]),
        WRITE,
    ),
    case(
        "CREATE OR REPLACE VIEW {t}_big AS SELECT id, grp, amount * 1 AS amount, 7 AS more FROM {t}",
        Follows(&[]),
        WRITE,
    ),
    case(
        "ALTER VIEW {t}_big RENAME TO {t}_large",
        Follows(&[("{t}_big", "{t}_large")]),
        WRITE,
    ),
    case("DROP VIEW {t}_big", Refused, WRITE),
    case("ALTER TABLE {t} ADD COLUMN extra int", Follows(&[]), WRITE),
];

const fn case(ddl: &'static str, outcome: Outcome, write_after: &'static str) -> Case {
    Case {
        ddl,
        outcome,
        write_after,
    }
}
