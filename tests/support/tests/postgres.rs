//! The helpers themselves: a test that cannot trust its server proves nothing.

use std::path::Path;

use test_support::{Auth, Postgres, Settings, majors};

/// Every major starts, lets its superuser in by password, and leaves nothing behind.
#[tokio::test]
async fn starts_and_stops_every_major() {
    for major in majors() {
        let postgres = Postgres::start(major);
        let (pid, directory) = (postgres.pid(), postgres.socket_directory().to_owned());
        let client = postgres.client("postgres", "postgres").await;
        let row = client
            .query_one(
                "SELECT current_setting('server_version_num')::int / 10000",
                &[],
            )
            .await;
        assert_eq!(
            row.expect("a row").get::<_, i32>(0),
            i32::try_from(major).expect("small")
        );
        drop(postgres);
        assert!(!directory.exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}

/// A crash loses nothing that was committed, and the port stays the same.
#[tokio::test]
async fn survives_a_crash() {
    let mut postgres = Postgres::start(15);
    let client = postgres.client("postgres", "postgres").await;
    client
        .batch_execute("CREATE TABLE t AS SELECT 7 AS x")
        .await
        .expect("create");
    let port = postgres.port();
    postgres.kill9();
    assert!(client.batch_execute("SELECT 1").await.is_err());
    postgres.restart();
    assert_eq!(postgres.port(), port);
    assert_eq!(
        postgres
            .psql("postgres", "postgres")
            .run(&["SELECT x FROM t"]),
        "7\n"
    );
}

/// Each way of authentication accepts the right password and, but for trust, refuses a wrong one.
#[tokio::test]
async fn authentication_methods() {
    for auth in [Auth::Trust, Auth::Password, Auth::Md5, Auth::Scram] {
        let postgres = Postgres::start_with(15, &Settings::auth(auth));
        postgres.client("postgres", "postgres").await;
        let psql = postgres.psql("postgres", "postgres");
        psql.run(&["CREATE ROLE other LOGIN PASSWORD 'not its name'"]);
        let wrong = postgres.psql("other", "postgres").try_run(&["SELECT 1"]);
        assert_eq!(
            wrong.success,
            auth == Auth::Trust,
            "{auth:?}: {}",
            wrong.stderr
        );
    }
}
