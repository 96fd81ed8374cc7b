//! Replication connections are passed through, each to a server connection of its own.

use test_support::wire::{Message, Messages, Wire, sqlstate, tags};
use test_support::{Auth, PoolerConfig, Postgres, Settings};

use super::stage::{Stage, direct, eventually, start};

fn replicating(port: u16) -> Wire {
    let parameters = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("replication", "database"),
    ];
    Wire::connect_with(port, &parameters)
}

#[test]
fn its_commands_are_the_servers_and_the_pool_stays_free() {
    let stage = Stage::new(1);
    let mut client = replicating(stage.pooler.port());
    assert_eq!(tags(&client.query("IDENTIFY_SYSTEM")), "TDCZ");
    assert_eq!(
        client.value("SHOW server_version_num"),
        direct().value("SHOW server_version_num")
    );
    let walsenders = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    assert_eq!(stage.client().value(walsenders), "1");
    client.send(Messages::new().terminate());
    client.end();
    eventually("the server connection is closed", || {
        direct().value(walsenders) == "0"
    });
}

#[test]
fn changes_are_streamed() {
    let settings = Settings::auth(Auth::Trust).parameter("wal_level", "logical");
    let server = Postgres::start_with(15, &settings);
    let config = PoolerConfig::new(&server).user_with("postgres", 2, "auth_type = \"trust\"");
    let pooler = start(&config);
    let mut writer = Wire::connect(pooler.port(), "postgres", "postgres");
    writer.run("CREATE TABLE t (a int primary key, b text)");
    writer.run("CREATE PUBLICATION p FOR TABLE t");
    let mut client = replicating(pooler.port());
    client.run("CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT");
    client.send(
        Messages::new().query(
            "START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '1', publication_names 'p')",
        ),
    );
    assert_eq!(client.message().tag, b'W');
    writer.run("INSERT INTO t SELECT n, repeat('x', 10000) FROM generate_series(1, 100) n");
    // XLogData: 'w', three int8, then the plug-in's message: 'I' is an insert, 'C' a commit.
    let plugin = |message: &Message| {
        (message.tag == b'd' && message.body[0] == b'w').then(|| message.body[25])
    };
    let mut inserted = 0;
    loop {
        match plugin(&client.message()) {
            Some(b'I') => inserted += 1,
            Some(b'C') => break,
            _ => (),
        }
    }
    assert_eq!(inserted, 100);
    // The other way: a standby's status, with the wish for an answer; then the end of the stream.
    let status = [&b"r"[..], &[0; 32], &[1]].concat();
    client.send(Messages::new().copy_data(&status));
    let alive = |message: &Message| message.tag == b'd' && message.body[0] == b'k';
    while !alive(&client.message()) {}
    client.send(Messages::new().copy_done());
    // A last sign of life may come in between.
    let end = tags(&client.ready());
    assert!(end.contains('c') && end.ends_with("CCZ"), "{end}");
    client.run("SELECT 1");
}

#[test]
fn a_refusal_is_the_servers() {
    direct().run(
        "DO $$ BEGIN CREATE ROLE no_replicator LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
    );
    let stage = Stage::with(1, |config| {
        config.user_with("no_replicator", 1, "auth_type = \"trust\"")
    });
    let refused = |port| {
        let mut wire = Wire::open(port);
        let parameters = [
            ("user", "no_replicator"),
            ("database", "postgres"),
            ("replication", "1"),
        ];
        wire.send(test_support::wire::startup(0x0003_0000, &parameters));
        let messages = wire.try_greeted().expect_err("a refusal");
        sqlstate(&messages)
    };
    assert_eq!(refused(stage.pooler.port()), "42501");
}
