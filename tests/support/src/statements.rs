//! What the tests of the statements share: a small source table, and a look at all of the catalog.

use std::path::Path;

use tokio_postgres::Client;

use crate::Stack;

/// A server and a pooler with the table `t (id, v, tag)` of 50 rows, and a client through the pooler and
/// one beside it.
pub async fn statement_stack(binary: impl AsRef<Path>) -> (Stack, Client, Client) {
    let stack = Stack::start(binary, 15);
    let (pooled, direct) = (stack.pooled().await, stack.direct().await);
    direct
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int, tag text); INSERT INTO t SELECT i, i % 7, 'g' || i % 3 FROM generate_series(1, 50) i")
        .await
        .expect("source");
    (stack, pooled, direct)
}

/// Every object of the database by name, and every trigger.
pub const EVERYTHING: &str = "
    SELECT md5(string_agg(o, ',' ORDER BY o)) FROM (
        SELECT 'c' || oid || relname FROM pg_class WHERE relnamespace <> 'pg_toast'::regnamespace
        UNION ALL SELECT 'p' || oid || proname FROM pg_proc
        UNION ALL SELECT 'n' || oid || nspname FROM pg_namespace
        UNION ALL SELECT 'y' || oid || typname FROM pg_type
        UNION ALL SELECT 't' || oid || tgname FROM pg_trigger) x(o)";
