//! Routing commands, comments and sharding keys: which shard a statement goes to.

use test_support::wire::{Messages, Wire, sqlstate, tags};
use test_support::{Pooler, PoolerConfig};

use crate::stage::{HOST, HOSTS, client, config, extended, server, start};

const DATABASE: &str = "SELECT current_database()";

/// Three shards, which are databases of one server.
fn sharded(configure: impl Fn(PoolerConfig) -> PoolerConfig) -> Pooler {
    let servers = [("127.0.0.1", server().port(), "primary")];
    let config = PoolerConfig::new(server())
        .shards(&[
            ("shard0", &servers),
            ("shard1", &servers),
            ("shard2", &servers),
        ])
        .user_with("postgres", 4, "auth_type = \"trust\"");
    start(&configure(config))
}

#[test]
fn set_shard_moves_the_next_statements() {
    let pooler = sharded(|config| config);
    let mut client = client(&pooler);
    assert_eq!(client.value("SHOW SHARD"), "unset");
    assert_eq!(client.value(DATABASE), "shard0");
    for (text, shard) in [
        ("SET SHARD TO '1'", "1"),
        ("set shard to 2;", "2"),
        ("\n/* why */ Set\tShard -- yes\n TO 0 ;", "0"),
        ("SET SHARDING KEY TO '2'", "0"),
    ] {
        let messages = client.query(text);
        assert_eq!(tags(&messages), "CZ", "{text}: {messages:?}");
        if !text.contains("KEY") {
            assert_eq!(client.value("show shard"), shard);
            assert_eq!(client.value(DATABASE), format!("shard{shard}"));
        }
    }
    let messages = client.query("SHOW SHARD;");
    assert_eq!(tags(&messages), "TDCZ");
    assert_eq!(messages[2].body, b"SELECT 1\0");
}

#[test]
fn set_shard_in_the_extended_protocol() {
    let pooler = sharded(|config| config);
    let mut client = client(&pooler);
    let messages = extended(&mut client, "SET SHARD TO '2'");
    assert_eq!(tags(&messages), "12nCZ", "{messages:?}");
    assert_eq!(messages[3].body, b"SET SHARD\0");
    let messages = extended(&mut client, "SHOW SHARD");
    assert_eq!(tags(&messages), "12TDCZ", "{messages:?}");
    assert_eq!(messages[3].row()[0].as_deref(), Some("2"));
    let messages = extended(&mut client, DATABASE);
    assert_eq!(messages[3].row()[0].as_deref(), Some("shard2"));
}

/// `psql -c "SET SHARD TO 1; SELECT …"` sends one Query.
#[test]
fn a_command_before_a_statement_moves_it() {
    let pooler = sharded(|config| config);
    let mut client = client(&pooler);
    let messages = client.query(&format!("SET SHARD TO '1'; {DATABASE}"));
    assert_eq!(tags(&messages), "CTDCZ", "{messages:?}");
    assert_eq!(messages[2].row()[0].as_deref(), Some("shard1"));
    // Positions are those in the whole text.
    let messages = client.query("SET SHARD TO '2'; SELECT nothing");
    assert_eq!(messages[1].field(b'P').as_deref(), Some("26"));
    assert_eq!(client.value(DATABASE), "shard2");
    assert_eq!(tags(&client.query("SET SHARD TO 0; SHOW SHARD")), "CTDCZ");
}

#[test]
fn a_shard_that_does_not_exist_changes_nothing() {
    let pooler = sharded(|config| config);
    let mut client = client(&pooler);
    client.run("SET SHARD TO 1");
    for (text, message) in [
        (
            "SET SHARD TO '3'",
            "shard 3 is not configured 3, staying on shard Some(1) (shard numbers start at 0)",
        ),
        (
            "SET SHARDING KEY TO '99999999999999999999'",
            "value \"99999999999999999999\" is out of range for type bigint",
        ),
    ] {
        let messages = client.query(text);
        assert_eq!(tags(&messages), "EZ");
        assert_eq!(messages[0].field(b'M').as_deref(), Some(message));
    }
    assert_eq!(client.value(DATABASE), "shard1");
    // What is no command of ours is the server's to refuse.
    assert_eq!(client.error("SET SHARD TO 'x'"), "42704");
}

#[test]
fn nothing_moves_inside_a_transaction() {
    let pooler = sharded(|config| config);
    let mut client = client(&pooler);
    client.run("BEGIN");
    assert_eq!(client.value("SHOW SHARD"), "unset");
    let messages = client.query("SET SHARD TO 1");
    assert_eq!(sqlstate(&messages), "25001");
    assert_eq!(messages.last().unwrap().body, b"E");
    client.run("ROLLBACK");
    client.run("BEGIN");
    assert_eq!(sqlstate(&extended(&mut client, "SET SHARD TO 1")), "25001");
    client.run("ROLLBACK");
    assert_eq!(client.value(DATABASE), "shard0");
    // Pipelined: the reply that ends the transaction is still to come.
    client.send(
        Messages::new()
            .query("BEGIN")
            .query("COMMIT")
            .query("SET SHARD TO 1")
            .query(DATABASE),
    );
    let replies: Vec<_> = (0..4).flat_map(|_| client.ready()).collect();
    assert_eq!(tags(&replies), "CZCZCZTDCZ");
    assert_eq!(replies[7].row()[0].as_deref(), Some("shard1"));
}

#[test]
fn roles_are_chosen_by_command() {
    let pooler = start(&config(&["primary", "replica"]));
    let mut client = client(&pooler);
    assert_eq!(client.value("SHOW SERVER ROLE"), "any");
    for (role, host) in [("primary", HOSTS[0]), ("replica", HOSTS[1])] {
        client.run(&format!("SET SERVER ROLE TO '{role}'"));
        assert_eq!(client.value("SHOW SERVER ROLE"), role);
        for _ in 0..20 {
            assert_eq!(client.value(HOST), host);
        }
    }
    client.run("SET SERVER ROLE TO 'default'");
    assert_eq!(client.value("SHOW SERVER ROLE"), "any");
    assert_eq!(client.value("SHOW PRIMARY READS"), "off");
    client.run("SET PRIMARY READS TO 'ON'");
    assert_eq!(client.value("SHOW PRIMARY READS"), "on");
    client.run("SET PRIMARY READS TO default");
    assert_eq!(client.value("SHOW PRIMARY READS"), "off");
}

#[test]
fn comments_name_shards() {
    let pooler = sharded(|config| {
        config
            .pool(r"shard_id_regex = '/\* shard_id: (\d+) \*/'")
            .pool(r"sharding_key_regex = '/\* sharding_key: (\d+) \*/'")
    });
    let mut client = client(&pooler);
    assert_eq!(client.value(DATABASE), "shard0");
    let named = |shard| format!("/* shard_id: {shard} */ {DATABASE}");
    assert_eq!(client.value(&named(2)), "shard2");
    // As in PgCat, it stays.
    assert_eq!(client.value(DATABASE), "shard2");
    let text = "SELECT '/* shard_id: 2 */', current_database() || '' /* shard_id: 1 */";
    let messages = client.query(text);
    assert_eq!(messages[1].row()[1].as_deref(), Some("shard1"));
    let messages = extended(&mut client, &named(0));
    assert_eq!(messages[3].row()[0].as_deref(), Some("shard0"));
    let messages = client.query(&named(7));
    assert_eq!(tags(&messages), "EZ");
    assert_eq!(
        messages[0].field(b'M').as_deref(),
        Some("could not get connection from the pool - InvalidShardId(7)")
    );
    // By key it is the shard that the command finds.
    client.run("SET SHARDING KEY TO 77");
    let by_command = client.value(DATABASE);
    client.run("SET SHARD TO 0");
    assert_eq!(
        client.value(&format!("/* sharding_key: 77 */ {DATABASE}")),
        by_command
    );
}

/// The keys go where PostgreSQL puts them in a table partitioned by hash.
#[test]
fn keys_are_hashed_as_in_postgresql() {
    let mut direct = Wire::connect(server().port(), "postgres", "postgres");
    direct.run(
        "DROP TABLE IF EXISTS hashed; CREATE TABLE hashed (id bigint) PARTITION BY HASH (id);
         CREATE TABLE hashed0 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 0);
         CREATE TABLE hashed1 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 1);
         CREATE TABLE hashed2 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 2);
         INSERT INTO hashed SELECT generate_series(-50, 50);
         INSERT INTO hashed SELECT n::bigint * 123456789012345 FROM generate_series(-20, 20) n;
         INSERT INTO hashed VALUES (9223372036854775807), (-9223372036854775808)",
    );
    let pooler = sharded(|config| config);
    let mut client = client(&pooler);
    for row in direct.query("SELECT id, tableoid::regclass FROM hashed") {
        if row.tag != b'D' {
            continue;
        }
        let [Some(key), Some(partition)] = &row.row()[..] else {
            panic!("{row:?}");
        };
        client.run(&format!("SET SHARDING KEY TO '{key}'"));
        let shard = client.value("SHOW SHARD");
        assert_eq!(format!("hashed{shard}"), *partition, "key {key}");
    }
}

#[test]
fn sharding_keys_in_statements() {
    for shard in 0..3 {
        let mut direct = Wire::connect(server().port(), "postgres", &format!("shard{shard}"));
        direct.run("DROP TABLE IF EXISTS keyed; CREATE TABLE keyed (id bigint, place text)");
    }
    let pooler = sharded(|config| {
        config
            .pool("query_parser_enabled = true")
            .pool("automatic_sharding_key = \"keyed.id\"")
    });
    let mut client = client(&pooler);
    for key in 0..20 {
        client.run(&format!("SET SHARDING KEY TO {key}"));
        let shard = client.value("SHOW SHARD");
        client.run("SET SHARD TO 0");
        let insert = "INSERT INTO keyed (place, id) VALUES (current_database(), ";
        client.run(&format!("{insert}{key})"));
        let select = format!("SELECT place FROM keyed AS k WHERE k.id = {key}");
        assert_eq!(client.value(&select), format!("shard{shard}"), "key {key}");
        // A parameter, in a statement prepared before.
        let name = format!("s{key}");
        client.send(
            Messages::new()
                .parse(&name, "SELECT place FROM keyed WHERE id = $1")
                .sync(),
        );
        assert_eq!(tags(&client.ready()), "1Z");
        client.send(
            Messages::new()
                .bind("", &name, &[Some(&key.to_string())])
                .execute("")
                .sync(),
        );
        let messages = client.ready();
        assert_eq!(tags(&messages), "2DCZ", "key {key}: {messages:?}");
        // It does not stay: a statement without a key goes where the client has chosen.
        assert_eq!(client.value(DATABASE), "shard0");
    }
    let messages = client.query("SELECT * FROM keyed WHERE id IN (0, 1, 2, 3, 4, 5)");
    assert_eq!(tags(&messages), "EZ");
    assert_eq!(sqlstate(&messages), "0A000");
    assert_eq!(
        client.error("UPDATE keyed SET id = 7 WHERE id = 6"),
        "0A000"
    );
    assert_eq!(tags(&client.query("SELECT 1")), "TDCZ");
}

#[test]
fn default_shard_is_where_the_others_go() {
    let pooler = sharded(|config| config.pool("default_shard = \"shard_2\""));
    assert_eq!(client(&pooler).value(DATABASE), "shard2");
    let pooler = sharded(|config| config.pool("default_shard = \"random\""));
    let mut client = client(&pooler);
    let seen = crate::stage::tally(&mut client, DATABASE, 100);
    assert_eq!(seen.len(), 3, "{seen:?}");
}
