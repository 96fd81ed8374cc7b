//! Cancel requests: to the right query, and to no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use test_support::wire::{Messages, Wire, cancel, cancel_request, sqlstate, ssl_request, tags};

use crate::stage::{Stage, eventually, is_running};

/// Starts a query that runs for longer than any test.
fn sleep(wire: &mut Wire, name: &str) {
    let sql = format!("/* {name} */ SELECT pg_sleep(100)");
    wire.send(Messages::new().query(&sql));
    eventually("the query runs", || is_running(&sql));
}

fn assert_cancelled(wire: &mut Wire) {
    let messages = wire.ready();
    assert_eq!(sqlstate(&messages), "57014", "{messages:?}");
    assert_eq!(wire.value("SELECT 1"), "1");
}

#[test]
fn the_own_query_is_cancelled() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    for _ in 0..3 {
        sleep(&mut client, "own");
        client.cancel();
        assert_cancelled(&mut client);
    }
    stage.assert_clean();
}

#[test]
fn others_are_not_cancelled() {
    let stage = Stage::new(3);
    let mut one = stage.client();
    let mut two = stage.client();
    let idle = stage.client();
    sleep(&mut one, "others one");
    sleep(&mut two, "others two");
    idle.cancel();
    one.cancel();
    assert_cancelled(&mut one);
    assert!(two.silent_for(Duration::from_millis(300)));
    two.cancel();
    assert_cancelled(&mut two);
}

#[test]
fn a_wrong_key_cancels_nothing() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    sleep(&mut client, "wrong key");
    let key = client.key().to_vec();
    for (position, change) in [(0, 1), (3, 1), (4, 0x80), (7, 1)] {
        let mut wrong = key.clone();
        wrong[position] ^= change;
        cancel(stage.pooler.port(), &wrong);
    }
    for wrong in [
        &key[..4],
        &key[..7],
        &[&key[..], &[0; 8]].concat(),
        &[0; 8],
        &[0xff; 8],
    ] {
        let mut wire = Wire::open(stage.pooler.port());
        wire.send(cancel_request(wrong));
        wire.shut_down_sending();
        assert!(!tags(&wire.end()).contains('Z'));
    }
    assert!(client.silent_for(Duration::from_millis(300)));
    client.cancel();
    assert_cancelled(&mut client);
}

#[test]
fn keys_are_not_the_servers_and_differ() {
    let stage = Stage::new(2);
    let mut one = stage.client();
    let two = stage.client();
    assert_eq!(one.key().len(), 8);
    assert_ne!(one.key(), two.key());
    assert_ne!(one.key()[4..], two.key()[4..]);
    // pgjdbc ignores negative process ids.
    assert!(one.key()[0] < 0x80);
    let _ = one.value("SELECT 1");
}

/// libpq from 17 on cancels over the kind of connection it has; a plain one asks for SSL first.
#[test]
fn a_cancel_request_after_an_ssl_request() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    sleep(&mut client, "after ssl");
    let mut wire = Wire::open(stage.pooler.port());
    wire.send(ssl_request());
    assert_eq!(wire.byte(), Some(b'N'));
    wire.send(cancel_request(client.key()));
    assert_eq!(wire.byte(), None);
    assert_cancelled(&mut client);
}

/// node-postgres sends a NUL behind its request, and Go's pq a Terminate.
#[test]
fn a_cancel_request_with_something_behind_it() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    for behind in [&b"\0"[..], Messages::new().terminate().as_ref()] {
        sleep(&mut client, "something behind");
        let mut wire = Wire::open(stage.pooler.port());
        wire.send([&cancel_request(client.key()), behind].concat());
        assert_eq!(wire.byte(), None);
        assert_cancelled(&mut client);
    }
}

/// libpq takes the end of the connection for the end of the matter: what it sends then is not to be
/// cancelled.
#[test]
fn a_cancel_request_is_over_when_its_connection_ends() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("BEGIN");
    for n in 0..100 {
        client.cancel();
        assert_eq!(
            client.value(&format!("SELECT {n} FROM pg_sleep(0.001)")),
            n.to_string()
        );
    }
}

/// The pool is full, with a queue: a cancel request does not stand in it.
#[test]
fn a_full_pool_can_be_cancelled() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    let mut waiting = stage.client();
    sleep(&mut client, "full pool");
    waiting.send(Messages::new().query("SELECT 2"));
    client.cancel();
    assert_cancelled(&mut client);
    assert_eq!(tags(&waiting.ready()), "TDCZ");
}

/// A client that waits for a server is given up by its own cancel request, or served; never hung.
#[test]
fn a_waiting_client_may_cancel() {
    let stage = Stage::new(1);
    let mut occupant = stage.occupant();
    let mut waiting = stage.client();
    waiting.send(Messages::new().query("SELECT 2"));
    thread::sleep(Duration::from_millis(50));
    waiting.cancel();
    occupant.run("SELECT 1");
    occupant.run("COMMIT");
    let messages = waiting.ready();
    if tags(&messages) != "TDCZ" {
        assert_eq!(sqlstate(&messages), "57014");
    }
    assert_eq!(waiting.value("SELECT 3"), "3");
}

#[test]
fn a_pipeline_is_cancelled() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.send(
        Messages::new()
            .statement("SELECT 1")
            .statement("SELECT pg_sleep(101)")
            .statement("SELECT 2")
            .sync(),
    );
    eventually("the query runs", || is_running("SELECT pg_sleep(101)"));
    client.cancel();
    assert_cancelled(&mut client);
    stage.assert_clean();
}

#[test]
fn a_cancelled_copy_is_rolled_back() {
    crate::stage::direct()
        .run("DROP TABLE IF EXISTS copy_cancelled; CREATE TABLE copy_cancelled (a int)");
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.send(Messages::new().query("COPY copy_cancelled FROM STDIN"));
    client.until(b'G');
    client.send(Messages::new().copy_data(b"1\n"));
    client.cancel();
    // The server looks for a cancel request when the next data has come.
    client.send(Messages::new().copy_data(b"2\n").copy_done());
    assert_cancelled(&mut client);
    assert_eq!(client.value("SELECT count(*) FROM copy_cancelled"), "0");
    stage.assert_clean();
}

/// The request arrives when the query has just ended and its server serves somebody else.
#[test]
fn a_late_cancel_hits_nobody_else() {
    let stage = Stage::new(1);
    let port = stage.pooler.port();
    let done = Arc::new(AtomicBool::new(false));
    let victims: Vec<_> = (0..3)
        .map(|_| {
            let done = done.clone();
            thread::spawn(move || {
                let mut wire = Wire::connect(port, "postgres", "postgres");
                let mut served = 0;
                while !done.load(Ordering::Relaxed) {
                    let messages = wire.query("SELECT pg_sleep(0.0005)");
                    assert_eq!(tags(&messages), "TDCZ", "{messages:?}");
                    served += 1;
                }
                served
            })
        })
        .collect();
    let until = Instant::now() + Duration::from_secs(4);
    let mut client = stage.client();
    while Instant::now() < until {
        client.send(Messages::new().query("SELECT pg_sleep(0.0005)"));
        let key = client.key().to_vec();
        let cancelling = thread::spawn(move || cancel(port, &key));
        let messages = client.ready();
        assert!(
            ["TDCZ", "TEZ", "EZ"].contains(&&*tags(&messages)),
            "{messages:?}"
        );
        cancelling.join().expect("the cancel request");
        // PostgreSQL's own race: a late signal may hit the client's next query; not here.
        client.query("SELECT 1");
    }
    done.store(true, Ordering::Relaxed);
    for victim in victims {
        assert!(victim.join().expect("nobody else is cancelled") > 0);
    }
}
