//! LISTEN in transaction mode: heard by who listens, between transactions, on one server connection for all.

use std::time::Duration;

use test_support::wire::{Message, Messages, Wire, sqlstate, tags};

use super::stage::{Stage, direct, eventually, same};

/// Channel and payload of a notification.
fn heard(message: &Message) -> (String, String) {
    assert_eq!(message.tag, b'A', "{message:?}");
    let text = String::from_utf8(message.body[4..].to_vec()).expect("text");
    let mut parts = text.split('\0');
    let mut next = || parts.next().expect("two strings").to_owned();
    (next(), next())
}

fn expect(listener: &mut Wire, channel: &str, payload: &str) {
    let message = listener.message();
    assert_eq!(heard(&message), (channel.to_owned(), payload.to_owned()));
}

/// Server connections that listen, as the server sees them by their last statement.
fn listening(channel: &str) -> String {
    direct().value(&format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query IN ('LISTEN \"{channel}\"', 'UNLISTEN \"{channel}\"')"
    ))
}

#[test]
fn a_listener_hears_and_holds_no_server_connection() {
    let stage = Stage::new(1);
    let (mut listener, mut other) = (stage.client(), stage.client());
    listener.run("LISTEN news");
    // The only server connection is free.
    other.run("BEGIN");
    other.run("NOTIFY news, 'it''s here'");
    assert!(listener.silent_for(Duration::from_millis(100)));
    other.run("COMMIT");
    expect(&mut listener, "news", "it's here");
    direct().run("NOTIFY news");
    expect(&mut listener, "news", "");
    other.run("BEGIN; NOTIFY news, 'never'; ROLLBACK; NOTIFY news, 'last'");
    expect(&mut listener, "news", "last");
    drop((listener, other));
    stage.assert_clean();
}

#[test]
fn all_listeners_share_one_connection_which_ends_with_the_last() {
    let stage = Stage::new(2);
    let mut listeners: Vec<_> = (0..5).map(|_| stage.client()).collect();
    for listener in &mut listeners {
        listener.run("LISTEN shared_channel");
    }
    assert_eq!(listening("shared_channel"), "1");
    direct().run("NOTIFY shared_channel, 'all'");
    for listener in &mut listeners {
        expect(listener, "shared_channel", "all");
    }
    drop(listeners);
    eventually("nobody listens", || listening("shared_channel") == "0");
}

#[test]
fn listen_in_the_extended_protocol_and_with_others_in_a_query() {
    let stage = Stage::new(1);
    let mut listener = stage.client();
    listener.send(Messages::new().statement("LISTEN \"My News\"").sync());
    assert_eq!(tags(&listener.ready()), "12CZ");
    let messages = listener.query("SELECT 1; LISTEN b; listen c");
    assert_eq!(tags(&messages), "TDCCCZ");
    for channel in ["My News", "b", "c"] {
        direct().run(&format!("NOTIFY \"{channel}\", 'x'"));
        expect(&mut listener, channel, "x");
    }
}

#[test]
fn the_replies_are_the_servers() {
    same(|wire| {
        wire.query("LISTEN a");
        wire.query("LISTEN");
        wire.query("LISTEN 'a'");
        wire.query("UNLISTEN a");
        wire.query("UNLISTEN nothing");
        wire.query("UNLISTEN *");
        wire.query("BEGIN; LISTEN a; SELECT 1; COMMIT");
        wire.query("BEGIN");
        wire.query("SELECT 1/0");
        wire.query("LISTEN a");
        wire.query("ROLLBACK");
        wire.query("LISTEN a; SELECT 1/0; LISTEN b");
        wire.send(
            Messages::new()
                .parse("", "LISTEN c")
                .describe_statement("")
                .sync(),
        );
        wire.ready();
        wire.query("DISCARD ALL");
    });
}

#[test]
fn a_rollback_takes_listen_and_unlisten_back() {
    let stage = Stage::new(1);
    let mut listener = stage.client();
    listener.run("LISTEN kept");
    listener.run("BEGIN");
    listener.run("LISTEN undone");
    listener.run("UNLISTEN kept");
    direct().run("NOTIFY undone, 'no'");
    listener.run("ROLLBACK");
    listener.query("LISTEN undone; SELECT 1/0");
    direct().run("NOTIFY undone, 'no'");
    direct().run("NOTIFY kept, 'yes'");
    expect(&mut listener, "kept", "yes");
    listener.run("BEGIN");
    listener.run("LISTEN done");
    listener.run("UNLISTEN kept");
    listener.run("COMMIT");
    direct().run("NOTIFY kept, 'no'");
    direct().run("NOTIFY done, 'yes'");
    expect(&mut listener, "done", "yes");
}

#[test]
fn nothing_is_heard_within_a_transaction_nor_after_unlisten() {
    let stage = Stage::new(2);
    let mut listener = stage.client();
    listener.run("LISTEN later; LISTEN other");
    listener.run("BEGIN");
    direct().run("NOTIFY later, '1'; NOTIFY later, '2'");
    assert!(listener.silent_for(Duration::from_millis(200)));
    assert_eq!(listener.value("SELECT 1"), "1");
    listener.run("COMMIT");
    expect(&mut listener, "later", "1");
    expect(&mut listener, "later", "2");
    for leave in ["UNLISTEN later", "UNLISTEN *", "DISCARD ALL"] {
        listener.run("LISTEN later");
        listener.run(leave);
        direct().run("NOTIFY later, 'no'");
        listener.run("LISTEN other");
        direct().run("NOTIFY other, 'yes'");
        expect(&mut listener, "other", "yes");
    }
}

#[test]
fn a_client_hears_itself_once() {
    let stage = Stage::new(2);
    let mut listener = stage.client();
    listener.run("LISTEN self");
    listener.run("NOTIFY self, 'me'");
    expect(&mut listener, "self", "me");
    assert!(listener.silent_for(Duration::from_millis(100)));
}

/// Notifications may have been lost: the client is to look again, and learns it as it would without the pooler.
#[test]
fn the_loss_of_the_listening_connection_disconnects_those_who_listen() {
    let stage = Stage::new(2);
    let (mut listener, mut other) = (stage.client(), stage.client());
    other.run("SELECT 1");
    listener.run("LISTEN to_be_lost");
    direct().run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN \"to_be_lost\"'",
    );
    assert_eq!(sqlstate(&listener.end()), "57P01");
    other.run("LISTEN to_be_lost");
    direct().run("NOTIFY to_be_lost, 'found'");
    expect(&mut other, "to_be_lost", "found");
}

#[test]
fn a_pooled_connection_left_listening_tells_nobody() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("DO $$ BEGIN EXECUTE 'LISTEN hidden'; END $$");
    direct().run("NOTIFY hidden, 'no'");
    assert_eq!(tags(&client.query("SELECT 1")), "TDCZ");
}
