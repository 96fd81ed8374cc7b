//! The programs of `tests/drivers`.

use std::path::Path;
use std::process::Command;

use crate::stage::{POOL_SIZE, Stage, server};

fn driver(name: &str) {
    let stage = Stage::new(name, POOL_SIZE);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers/run");
    let output = Command::new(script)
        .arg(name)
        .env("PGHOST", "localhost")
        .env("PGPORT", stage.pooler.port().to_string())
        .env("DIRECT_PORT", server().port().to_string())
        .env("PGUSER", "app")
        .env("PGPASSWORD", "app")
        .env("PGSSLMODE", "disable")
        .env("PGDATABASE", &stage.database)
        .env("TLS_CA", stage.ca())
        .env("TLS_OTHER_CA", stage.other_ca())
        .output()
        .expect("tests/drivers/run");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {}", output.status);
    // A program that is empty proves nothing.
    assert!(text.lines().filter(|line| line.starts_with("ok ")).count() >= 8);
}

macro_rules! drivers {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                driver(stringify!($name));
            }
        )*
    };
}

drivers!(asyncpg django node_postgres pgjdbc pgx postgres_js psql psycopg psycopg_async sqlalchemy);
