//! sqlx: its pool, its statement cache, its listener.

use std::time::Duration;

use sqlx::postgres::{
    PgConnectOptions, PgListener, PgPool, PgPoolCopyExt as _, PgPoolOptions, PgSslMode,
};
use sqlx::{Connection as _, Error, Executor as _, PgConnection, Row as _};

use crate::stage::{POOL_SIZE, Stage};

fn options(stage: &Stage) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host("localhost")
        .port(stage.pooler.port())
        .username("app")
        .password("app")
        .database(&stage.database)
        .ssl_mode(PgSslMode::Disable)
}

async fn pool(stage: &Stage, size: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(size)
        .connect_with(options(stage))
        .await
        .expect("a pool")
}

fn code(error: &Error) -> String {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .unwrap_or_else(|| panic!("{error:?}"))
        .into_owned()
}

#[test]
fn sqlx() {
    let stage = Stage::new("sqlx", POOL_SIZE);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        logs_in(&stage).await;
        encrypts(&stage).await;
        statements_of_many_clients(&stage).await;
        errors_in_transactions(&stage).await;
        copies(&stage).await;
        cancels(&stage).await;
        listens(&stage).await;
        values(&stage).await;
        large_results(&stage).await;
    });
}

async fn logs_in(stage: &Stage) {
    let refused = PgConnection::connect_with(&options(stage).password("wrong")).await;
    assert_eq!(
        code(&refused.expect_err("let in with a wrong password")),
        "28P01"
    );
}

async fn encrypts(stage: &Stage) {
    let verified = options(stage).ssl_mode(PgSslMode::VerifyFull);
    let mut client = PgConnection::connect_with(&verified.clone().ssl_root_cert(stage.ca()))
        .await
        .unwrap();
    let text: String = sqlx::query_scalar("SELECT repeat($1, 3000000)")
        .bind("é")
        .fetch_one(&mut client)
        .await
        .unwrap();
    assert_eq!(text, "é".repeat(3_000_000));
    let stranger = PgConnection::connect_with(&verified.ssl_root_cert(stage.other_ca())).await;
    assert!(matches!(stranger, Err(Error::Tls(_) | Error::Io(_))));
}

async fn statements_of_many_clients(stage: &Stage) {
    let pool = pool(stage, 12).await;
    let tasks: Vec<_> = (0..200_i32)
        .map(|number| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let mut transaction = pool.begin().await?;
                let sum: i32 = sqlx::query_scalar("SELECT $1::int4 + $2::int4")
                    .bind(number)
                    .bind(1)
                    .fetch_one(&mut *transaction)
                    .await?;
                let text: String = sqlx::query_scalar(&format!("SELECT $1 || ' {}'", number % 7))
                    .bind("own")
                    .fetch_one(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                assert_eq!((sum, text), (number + 1, format!("own {}", number % 7)));
                Ok::<_, Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic").unwrap();
    }
    pool.close().await;
}

async fn errors_in_transactions(stage: &Stage) {
    let mut client = PgConnection::connect_with(&options(stage)).await.unwrap();
    client
        .execute("CREATE TABLE kept (a int4 PRIMARY KEY)")
        .await
        .unwrap();
    let insert = |number: i32| sqlx::query("INSERT INTO kept VALUES ($1)").bind(number);
    let mut outer = client.begin().await.unwrap();
    insert(1).execute(&mut *outer).await.unwrap();
    let mut inner = outer.begin().await.unwrap();
    let error = insert(1).execute(&mut *inner).await.unwrap_err();
    assert_eq!(code(&error), "23505");
    let error = insert(2).execute(&mut *inner).await.unwrap_err();
    assert_eq!(code(&error), "25P02");
    inner.rollback().await.unwrap();
    insert(2).execute(&mut *outer).await.unwrap();
    outer.commit().await.unwrap();
    let mut dropped = client.begin().await.unwrap();
    insert(3).execute(&mut *dropped).await.unwrap();
    drop(dropped);
    let kept: Vec<i32> = sqlx::query_scalar("SELECT a FROM kept ORDER BY a")
        .fetch_all(&mut client)
        .await
        .unwrap();
    assert_eq!(kept, [1, 2]);
}

async fn copies(stage: &Stage) {
    let pool = pool(stage, 2).await;
    pool.execute("CREATE TABLE copied (a int4, b text)")
        .await
        .unwrap();
    let text: String = (0..20_000).map(|n| format!("{n}\trow {n}\n")).collect();
    let mut copy = pool.copy_in_raw("COPY copied FROM STDIN").await.unwrap();
    for chunk in text.as_bytes().chunks(1000) {
        copy.send(chunk).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), 20_000);
    let out = pool
        .copy_out_raw("COPY (SELECT * FROM copied ORDER BY a) TO STDOUT")
        .await
        .unwrap();
    let chunks: Vec<_> = futures_util::TryStreamExt::try_collect(out).await.unwrap();
    assert!(chunks.concat() == text.as_bytes());
    let mut copy = pool.copy_in_raw("COPY copied FROM STDIN").await.unwrap();
    copy.send(&b"no number\trow\n"[..]).await.unwrap();
    assert_eq!(code(&copy.finish().await.unwrap_err()), "22P02");
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM copied")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(count, 20_000);
    pool.close().await;
}

/// sqlx sends no CancelRequest; a server asked by SQL ends the statement just so.
async fn cancels(stage: &Stage) {
    let mut client = PgConnection::connect_with(&options(stage)).await.unwrap();
    let mut other = PgConnection::connect_with(&options(stage)).await.unwrap();
    let canceller = async {
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
            WHERE wait_event = 'PgSleep' AND query = 'SELECT pg_sleep(600)'";
        while sqlx::query(cancel)
            .fetch_optional(&mut other)
            .await
            .unwrap()
            .is_none()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (result, ()) = tokio::join!(client.execute("SELECT pg_sleep(600)"), canceller);
    assert_eq!(code(&result.unwrap_err()), "57014");
    let answer: i32 = sqlx::query_scalar("SELECT 42")
        .fetch_one(&mut client)
        .await
        .unwrap();
    assert_eq!(answer, 42);
}

async fn listens(stage: &Stage) {
    let pool = pool(stage, 4).await;
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen_all(["News", "other"]).await.unwrap();
    for (payload, commit) in [("first", true), ("rolled back", false), ("last", true)] {
        let mut transaction = pool.begin().await.unwrap();
        sqlx::query("SELECT pg_notify('News', $1)")
            .bind(payload)
            .execute(&mut *transaction)
            .await
            .unwrap();
        if commit {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
    }
    for expected in ["first", "last"] {
        let heard = tokio::time::timeout(Duration::from_secs(60), listener.recv()).await;
        let heard = heard.expect("a notification").unwrap();
        assert_eq!((heard.channel(), heard.payload()), ("News", expected));
    }
    drop(listener);
    pool.close().await;
}

async fn values(stage: &Stage) {
    let mut client = PgConnection::connect_with(&options(stage)).await.unwrap();
    let row = sqlx::query(
        "SELECT $1::int8 AS i, $2::float8 AS f, $3 AS t, $4 AS b, $5 AS a, $6::int4 AS n",
    )
    .bind(i64::MIN)
    .bind(f64::INFINITY)
    .bind("naïve \u{1F418}")
    .bind(&b"\0\xff"[..])
    .bind(vec![Some(1), None, Some(3)])
    .bind(None::<i32>)
    .fetch_one(&mut client)
    .await
    .unwrap();
    assert_eq!(row.get::<i64, _>("i"), i64::MIN);
    assert_eq!(row.get::<f64, _>("f"), f64::INFINITY);
    assert_eq!(row.get::<&str, _>("t"), "naïve \u{1F418}");
    assert_eq!(row.get::<&[u8], _>("b"), b"\0\xff");
    assert_eq!(
        row.get::<Vec<Option<i32>>, _>("a"),
        [Some(1), None, Some(3)]
    );
    assert_eq!(row.get::<Option<i32>, _>("n"), None);
}

async fn large_results(stage: &Stage) {
    let mut client = PgConnection::connect_with(&options(stage)).await.unwrap();
    let text: String = sqlx::query_scalar("SELECT $1 || repeat('y', 10000000)")
        .bind("x".repeat(10_000_000))
        .fetch_one(&mut client)
        .await
        .unwrap();
    assert_eq!(text.len(), 20_000_000);
    assert!(text[10_000_000..].bytes().all(|byte| byte == b'y'));
    let rows: Vec<(i32, String)> =
        sqlx::query_as("SELECT n, repeat('z', n % 100) FROM generate_series(0, 99999) n")
            .fetch_all(&mut client)
            .await
            .unwrap();
    assert_eq!(rows.len(), 100_000);
    for (expected, (number, text)) in rows.iter().enumerate() {
        assert_eq!(usize::try_from(*number).unwrap(), expected);
        assert_eq!(text.len(), expected % 100);
    }
}
