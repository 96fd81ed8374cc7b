//! tokio-postgres: binary, always pipelined, statements by name.

use std::future::poll_fn;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::{SinkExt as _, TryStreamExt as _, pin_mut};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls, Notification};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::stage::{POOL_SIZE, Stage};

fn config(stage: &Stage) -> Config {
    let mut config = Config::new();
    config
        .host("localhost")
        .port(stage.pooler.port())
        .user("app")
        .password("app")
        .dbname(&stage.database);
    config
}

async fn plain(stage: &Stage) -> Client {
    let (client, connection) = config(stage).connect(NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

fn trusting(ca: &Path) -> MakeRustlsConnect {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).expect("the CA"))
        .expect("a root");
    MakeRustlsConnect::new(
        ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    )
}

/// A client that hands on what it is notified of.
async fn listener(stage: &Stage) -> (Client, UnboundedReceiver<Notification>) {
    let (client, mut connection) = config(stage).connect(NoTls).await.expect("a connection");
    let (heard, notifications) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = heard.send(notification);
            }
        }
    });
    (client, notifications)
}

fn code(error: &Error) -> &SqlState {
    error.code().unwrap_or_else(|| panic!("{error:?}"))
}

#[test]
fn tokio_postgres() {
    let stage = Stage::new("tokio_postgres", POOL_SIZE);
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
        pipelines(&stage).await;
        listens(&stage).await;
        values(&stage).await;
        large_results(&stage).await;
    });
}

async fn logs_in(stage: &Stage) {
    let client = plain(stage).await;
    let row = client.query_one("SELECT current_user::text", &[]).await;
    assert_eq!(row.unwrap().get::<_, &str>(0), "app");
    let refused = config(stage).password("wrong").connect(NoTls).await;
    let error = refused.err().expect("let in with a wrong password");
    assert_eq!(code(&error), &SqlState::INVALID_PASSWORD);
}

async fn encrypts(stage: &Stage) {
    let mut config = config(stage);
    config.ssl_mode(SslMode::Require);
    let tls = trusting(&stage.ca());
    let (client, connection) = config.connect(tls.clone()).await.unwrap();
    tokio::spawn(connection);
    let row = client
        .query_one("SELECT repeat($1, 3000000)", &[&"é"])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "é".repeat(3_000_000));
    cancel(stage, &client, |token| async move {
        token.cancel_query(tls).await
    })
    .await;
    assert!(config.connect(trusting(&stage.other_ca())).await.is_err());
}

async fn statements_of_many_clients(stage: &Stage) {
    let clients = try_join_all((0..12).map(|number| async move {
        let mut client = plain(stage).await;
        let plus = client.prepare("SELECT $1::int4 + $2::int4").await?;
        let own = client
            .prepare(&format!("SELECT $1::text || ' {number}'"))
            .await?;
        for round in 0..20_i32 {
            let transaction = client.transaction().await?;
            let row = transaction.query_one(&plus, &[&round, &number]).await?;
            assert_eq!(row.get::<_, i32>(0), round + number);
            let row = transaction.query_one(&own, &[&"own"]).await?;
            assert_eq!(row.get::<_, String>(0), format!("own {number}"));
            transaction.commit().await?;
        }
        Ok::<_, Error>(())
    }));
    assert_eq!(clients.await.unwrap().len(), 12);
}

async fn errors_in_transactions(stage: &Stage) {
    let mut client = plain(stage).await;
    client
        .batch_execute("CREATE TABLE kept (a int4 PRIMARY KEY)")
        .await
        .unwrap();
    let mut transaction = client.transaction().await.unwrap();
    let insert = "INSERT INTO kept VALUES ($1)";
    transaction.execute(insert, &[&1_i32]).await.unwrap();
    let savepoint = transaction.savepoint("s").await.unwrap();
    let error = savepoint.execute(insert, &[&1_i32]).await.unwrap_err();
    assert_eq!(code(&error), &SqlState::UNIQUE_VIOLATION);
    let error = savepoint.query("SELECT 1", &[]).await.unwrap_err();
    assert_eq!(code(&error), &SqlState::IN_FAILED_SQL_TRANSACTION);
    savepoint.rollback().await.unwrap();
    transaction.execute(insert, &[&2_i32]).await.unwrap();
    transaction.commit().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute(insert, &[&3_i32]).await.unwrap();
    drop(transaction);
    let row = client.query_one("SELECT array_agg(a ORDER BY a) FROM kept", &[]);
    assert_eq!(row.await.unwrap().get::<_, Vec<i32>>(0), [1, 2]);
}

async fn copies(stage: &Stage) {
    let mut client = plain(stage).await;
    client
        .batch_execute("CREATE TABLE copied (a int4, b text)")
        .await
        .unwrap();
    let transaction = client.transaction().await.unwrap();
    let sink = transaction.copy_in("COPY copied FROM STDIN").await.unwrap();
    pin_mut!(sink);
    for number in 0..20_000 {
        let line = std::io::Cursor::new(format!("{number}\trow {number}\n").into_bytes());
        sink.feed(line).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 20_000);
    transaction.commit().await.unwrap();
    let out = client
        .copy_out("COPY (SELECT * FROM copied ORDER BY a) TO STDOUT")
        .await
        .unwrap();
    let chunks: Vec<_> = out.try_collect().await.unwrap();
    let expected: String = (0..20_000).map(|n| format!("{n}\trow {n}\n")).collect();
    assert!(chunks.concat() == expected.as_bytes());
    let sink = client.copy_in("COPY copied FROM STDIN").await.unwrap();
    pin_mut!(sink);
    sink.send(&b"no number\trow\n"[..]).await.unwrap();
    let error = sink.finish().await.unwrap_err();
    assert_eq!(code(&error), &SqlState::INVALID_TEXT_REPRESENTATION);
    // Dropped: CopyFail.
    let sink = client
        .copy_in::<_, &[u8]>("COPY copied FROM STDIN")
        .await
        .unwrap();
    drop(sink);
    let row = client
        .query_one("SELECT count(*) FROM copied", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 20_000);
}

/// Runs `cancel` as soon as a query of `client` runs, which that must end.
async fn cancel<F: Future<Output = Result<(), Error>>>(
    stage: &Stage,
    client: &Client,
    cancel: impl FnOnce(tokio_postgres::CancelToken) -> F,
) {
    let observer = plain(stage).await;
    let canceller = async {
        let running = "SELECT count(*) FROM pg_stat_activity
            WHERE state = 'active' AND wait_event = 'PgSleep' AND query LIKE 'SELECT pg_sleep%'";
        while observer
            .query_one(running, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel(client.cancel_token()).await.unwrap();
    };
    let (result, ()) = tokio::join!(client.query("SELECT pg_sleep(600)", &[]), canceller);
    assert_eq!(code(&result.unwrap_err()), &SqlState::QUERY_CANCELED);
    let row = client.query_one("SELECT 42", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 42);
}

async fn cancels(stage: &Stage) {
    let client = plain(stage).await;
    for _ in 0..3 {
        cancel(stage, &client, |token| async move {
            token.cancel_query(NoTls).await
        })
        .await;
    }
}

async fn pipelines(stage: &Stage) {
    let client = plain(stage).await;
    let statement = client.prepare("SELECT 100 / $1::int4").await.unwrap();
    let (client, statement) = (&client, &statement);
    let queries = (-50..50_i32).map(|divisor| async move {
        match client.query_one(statement, &[&divisor]).await {
            Ok(row) => assert_eq!(row.get::<_, i32>(0), 100 / divisor),
            Err(error) => {
                assert_eq!(code(&error), &SqlState::DIVISION_BY_ZERO);
                assert_eq!(divisor, 0);
            }
        }
    });
    futures_util::future::join_all(queries).await;
}

async fn listens(stage: &Stage) {
    let (client, mut heard) = listener(stage).await;
    client.batch_execute("LISTEN \"News\"").await.unwrap();
    let mut teller = plain(stage).await;
    for (number, commit) in [(1, true), (2, false), (3, true)] {
        let transaction = teller.transaction().await.unwrap();
        let payload = format!("news {number}");
        transaction
            .execute("SELECT pg_notify('News', $1)", &[&payload])
            .await
            .unwrap();
        if commit {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
    }
    for expected in ["news 1", "news 3"] {
        let next = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await;
        let next = next.expect("a notification").expect("a connection");
        assert_eq!((next.channel(), next.payload()), ("News", expected));
    }
    client.batch_execute("UNLISTEN *").await.unwrap();
}

async fn values(stage: &Stage) {
    let client = plain(stage).await;
    let row = client
        .query_one(
            "SELECT $1::int8, $2::float8, $3::bool, $4::text, $5::bytea, $6::int4[], $7::text, NULL::int4, ''",
            &[
                &i64::MIN,
                &f64::NEG_INFINITY,
                &true,
                &"naïve \u{1F418}",
                &&b"\0\xff"[..],
                &vec![Some(1), None, Some(3)],
                &None::<&str>,
            ],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), i64::MIN);
    assert_eq!(row.get::<_, f64>(1), f64::NEG_INFINITY);
    assert!(row.get::<_, bool>(2));
    assert_eq!(row.get::<_, &str>(3), "naïve \u{1F418}");
    assert_eq!(row.get::<_, &[u8]>(4), b"\0\xff");
    assert_eq!(row.get::<_, Vec<Option<i32>>>(5), [Some(1), None, Some(3)]);
    assert_eq!(row.get::<_, Option<&str>>(6), None);
    assert_eq!(row.get::<_, Option<i32>>(7), None);
    assert_eq!(row.get::<_, &str>(8), "");
}

async fn large_results(stage: &Stage) {
    let client = plain(stage).await;
    let row = client
        .query_one(
            "SELECT $1::text || repeat('y', 10000000)",
            &[&"x".repeat(10_000_000)],
        )
        .await
        .unwrap();
    let text: &str = row.get(0);
    assert_eq!(text.len(), 20_000_000);
    assert!(text.starts_with('x') && text[10_000_000..].bytes().all(|byte| byte == b'y'));
    let rows = client
        .query(
            "SELECT n, repeat('z', n % 100) FROM generate_series(0, 199999) n",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(rows.len(), 200_000);
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row.get::<_, i32>(0), i32::try_from(number).unwrap());
        assert_eq!(row.get::<_, &str>(1).len(), number % 100);
    }
}
