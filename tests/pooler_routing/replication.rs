//! Replicas that are behind.

use std::collections::BTreeMap;

use test_support::wire::{Messages, Wire};
use test_support::{Pooler, PoolerConfig, Postgres};

use crate::stage::{client, config_of, eventually, own_server, start, tally};

const PORT: &str = "SELECT current_setting('port')";

fn direct(server: &Postgres) -> Wire {
    Wire::connect(server.port(), "postgres", "postgres")
}

fn splitting(servers: &[(&Postgres, &str)]) -> PoolerConfig {
    config_of(servers)
        .pool("query_parser_enabled = true")
        .pool("query_parser_read_write_splitting = true")
        .general("admin_auth_type = \"trust\"")
}

/// The rows of SHOW REPLICATION by port, columns by name.
fn shown(pooler: &Pooler) -> BTreeMap<String, BTreeMap<&'static str, String>> {
    const COLUMNS: [&str; 11] = [
        "database",
        "user",
        "shard",
        "host",
        "port",
        "role",
        "timeline",
        "lsn",
        "lag_ms",
        "max_lag_ms",
        "lagging",
    ];
    let mut admin = Wire::connect(pooler.port(), "admin", "pgcat");
    let messages = admin.query("SHOW REPLICATION");
    let rows = messages.iter().filter(|message| message.tag == b'D');
    rows.map(|row| {
        let values = row.row().into_iter().map(Option::unwrap_or_default);
        let row: BTreeMap<_, _> = COLUMNS.into_iter().zip(values).collect();
        (row["port"].clone(), row)
    })
    .collect()
}

fn port(server: &Postgres) -> String {
    server.port().to_string()
}

/// Where reads go, when they go to as many servers as this.
fn await_places(client: &mut Wire, places: &[&Postgres]) {
    let mut expected: Vec<String> = places.iter().map(|server| port(server)).collect();
    expected.sort_unstable();
    eventually(&format!("reads go to {expected:?}"), || {
        let tally = tally(client, PORT, 30);
        tally.into_keys().collect::<Vec<_>>() == expected
    });
}

#[test]
fn a_replica_that_lags_is_left_out_until_it_has_caught_up() {
    let primary = own_server();
    let (one, two) = (primary.standby(), primary.standby());
    let servers = [(&primary, "primary"), (&one, "replica"), (&two, "replica")];
    let pooler = start(&splitting(&servers).pool("max_replica_lag = 1000"));
    let mut client = client(&pooler);
    client.run("CREATE TABLE t (a int)");
    await_places(&mut client, &[&one, &two]);

    direct(&one).run("SELECT pg_wal_replay_pause()");
    client.run("INSERT INTO t VALUES (1)");
    await_places(&mut client, &[&two]);
    let rows = shown(&pooler);
    assert_eq!(rows.len(), 3, "{rows:?}");
    let row = &rows[&port(&one)];
    assert_eq!(
        (row["lagging"].as_str(), row["max_lag_ms"].as_str()),
        ("1", "1000")
    );
    assert!(
        row["lag_ms"].parse::<u64>().expect("a number") > 1000,
        "{row:?}"
    );
    assert_eq!(rows[&port(&two)]["lagging"], "0");

    // None is left: the primary serves, rather than an old state.
    direct(&two).run("SELECT pg_wal_replay_pause()");
    client.run("INSERT INTO t VALUES (2)");
    await_places(&mut client, &[&primary]);
    assert_eq!(client.value("SELECT count(*) FROM t"), "2");

    direct(&one).run("SELECT pg_wal_replay_resume()");
    await_places(&mut client, &[&one]);
    direct(&two).run("SELECT pg_wal_replay_resume()");
    await_places(&mut client, &[&one, &two]);
    eventually("it has caught up", || {
        shown(&pooler)[&port(&one)]["lag_ms"] == "0"
    });
    assert!(pooler.log().contains("has caught up"), "{}", pooler.log());
}

/// Neither the age of the last transaction says anything, nor a record that the primary has not written
/// to its end.
#[test]
fn a_replica_of_an_idle_primary_is_not_behind() {
    let primary = own_server();
    let replica = primary.standby();
    let servers = [(&primary, "primary"), (&replica, "replica")];
    // Of one that is behind when the pooler starts nobody knows for how long.
    let (mut writer, mut reader) = (direct(&primary), direct(&replica));
    eventually("it has replayed all that there is", || {
        let written = writer.value("SELECT pg_current_wal_lsn()");
        reader.value(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")) == "t"
    });
    let pooler = start(&splitting(&servers).pool("max_replica_lag = 3000"));
    let mut client = client(&pooler);
    client.run("CREATE TABLE t (a text)");
    await_places(&mut client, &[&replica]);
    let mut open = direct(&primary);
    open.run("BEGIN; INSERT INTO t SELECT repeat('x', 100) FROM generate_series(1, 20000)");
    let mut standby = direct(&replica);
    eventually("the last transaction is long ago", || {
        standby.value("SELECT now() - pg_last_xact_replay_timestamp() > '6 s'") == "t"
    });
    assert!(!pooler.log().contains("lags by"), "{}", pooler.log());
    assert_eq!(client.value(PORT), port(&replica));
    open.run("COMMIT");
}

/// What is missed of a primary that is gone will not come: reads go on.
#[test]
fn replicas_serve_while_the_primary_is_down() {
    let mut primary = own_server();
    let replica = primary.standby();
    let servers = [(&primary, "primary"), (&replica, "replica")];
    let pooler = start(&splitting(&servers).pool("max_replica_lag = 1000"));
    let mut client = client(&pooler);
    await_places(&mut client, &[&replica]);
    primary.kill9();
    eventually("it is known that the primary is down", || {
        shown(&pooler)[&port(&primary)]["lsn"].is_empty()
    });
    for _ in 0..20 {
        assert_eq!(client.value(PORT), port(&replica));
    }
}

#[test]
fn a_client_reads_what_it_has_written_and_others_wait_for_nothing() {
    let primary = own_server();
    let replica = primary.standby();
    let servers = [(&primary, "primary"), (&replica, "replica")];
    let pooler = start(&splitting(&servers).pool("read_your_writes = true"));
    let mut writer = client(&pooler);
    writer.run("CREATE TABLE t (a int)");
    await_places(&mut writer, &[&replica]);
    let mut other = client(&pooler);
    await_places(&mut other, &[&replica]);

    let mut standby = direct(&replica);
    standby.run("SELECT pg_wal_replay_pause()");
    // Until it is paused a record may yet be replayed.
    eventually("it is paused", || {
        standby.value("SELECT pg_get_wal_replay_pause_state()") == "paused"
    });
    let write = "WITH w AS (INSERT INTO t VALUES (1) RETURNING 1) SELECT 1 FROM w";
    writer.run(write);
    for _ in 0..10 {
        assert_eq!(writer.value("SELECT count(*) FROM t"), "1");
        assert_eq!(writer.value(PORT), port(&primary));
        assert_eq!(other.value(PORT), port(&replica));
        assert_eq!(other.value("SELECT count(*) FROM t"), "0");
    }
    // Transactions that only read are no exception.
    writer.run("BEGIN READ ONLY");
    assert_eq!(writer.value("SELECT count(*) FROM t"), "1");
    writer.run("COMMIT");
    standby.run("SELECT pg_wal_replay_resume()");
    await_places(&mut writer, &[&replica]);
    assert_eq!(writer.value("SELECT count(*) FROM t"), "1");
}

/// The replica applies everything late: whatever was not looked after would be missed.
#[test]
fn every_kind_of_write_is_read() {
    let primary = own_server();
    let replica = primary.standby();
    let servers = [(&primary, "auto"), (&replica, "auto")];
    let config = splitting(&servers)
        .pool("read_your_writes = true")
        .pool("primary_reads_enabled = true");
    let pooler = start(&config);
    let mut client = client(&pooler);
    client.run("CREATE TABLE t (a int)");
    await_places(&mut client, &[&primary, &replica]);
    let mut standby = direct(&replica);
    standby.run("ALTER SYSTEM SET recovery_min_apply_delay = '300ms'");
    standby.run("SELECT pg_reload_conf()");
    eventually("the delay is in force", || {
        standby.value("SHOW recovery_min_apply_delay") == "300ms"
    });
    client.send(
        Messages::new()
            .parse("w", "INSERT INTO t VALUES ($1::int)")
            .parse("r", "SELECT max(a) FROM t")
            .sync(),
    );
    client.ready();
    let read = Messages::new().bind("", "r", &[]).execute("").sync();
    let mut last = 0;
    let mut next = || {
        last += 1;
        last.to_string()
    };
    for _ in 0..5 {
        // Simple.
        let n = next();
        client.run(&format!("INSERT INTO t VALUES ({n})"));
        assert_eq!(client.value("SELECT max(a) FROM t"), n);
        // In a block, with a read at the end.
        let n = next();
        client.run("BEGIN");
        client.run(&format!("INSERT INTO t VALUES ({n})"));
        client.run("SELECT 1");
        client.run("COMMIT");
        assert_eq!(client.value("SELECT max(a) FROM t"), n);
        // Not flushed.
        let n = next();
        client.run(&format!(
            "BEGIN; SET LOCAL synchronous_commit = off; INSERT INTO t VALUES ({n}); COMMIT"
        ));
        assert_eq!(client.value("SELECT max(a) FROM t"), n);
        // Settings change in the same transaction.
        let n = next();
        client.run(&format!(
            "SET work_mem = '{n}MB'; INSERT INTO t VALUES ({n})"
        ));
        assert_eq!(client.value("SELECT max(a) FROM t"), n);
        // Prepared, and the read in the same packet.
        let n = next();
        let write = Messages::new()
            .bind("", "w", &[Some(&n)])
            .execute("")
            .sync();
        client.send(write.then(&read));
        client.ready();
        let replies = client.ready();
        let row = replies.iter().find(|message| message.tag == b'D');
        let value = row.unwrap_or_else(|| panic!("{replies:?}")).row()[0].clone();
        assert_eq!(value.as_deref(), Some(n.as_str()));
        // By COPY.
        let n = next();
        client.send(Messages::new().query("COPY t FROM STDIN"));
        client.until(b'G');
        client.send(
            Messages::new()
                .copy_data(format!("{n}\n").as_bytes())
                .copy_done(),
        );
        client.ready();
        assert_eq!(client.value("SELECT max(a) FROM t"), n);
    }
    await_places(&mut client, &[&primary, &replica]);
}

/// No privileges are needed, neither to see how far servers are nor to be asked.
#[test]
fn a_plain_user_is_enough() {
    let primary = own_server();
    let replica = primary.standby();
    direct(&primary).run("CREATE ROLE plain LOGIN; GRANT ALL ON SCHEMA public TO plain");
    let config = PoolerConfig::new(&primary)
        .servers(&[
            ("127.0.0.1", primary.port(), "primary"),
            ("127.0.0.1", replica.port(), "replica"),
        ])
        .user_with("plain", 4, "auth_type = \"trust\"")
        .pool("query_parser_enabled = true")
        .pool("query_parser_read_write_splitting = true")
        .pool("read_your_writes = true")
        .pool("max_replica_lag = 60000")
        .general("admin_auth_type = \"trust\"");
    let pooler = start(&config);
    let mut client = Wire::connect(pooler.port(), "plain", "postgres");
    client.run("CREATE TABLE t (a int)");
    for n in 1..=20 {
        client.run(&format!("INSERT INTO t VALUES ({n})"));
        assert_eq!(client.value("SELECT count(*) FROM t"), n.to_string());
    }
    await_places(&mut client, &[&replica]);
    let rows = shown(&pooler);
    for server in [&primary, &replica] {
        let row = &rows[&port(server)];
        assert_eq!(row["timeline"], "1", "{row:?}");
        assert!(row["lsn"].contains('/'), "{row:?}");
    }
}

/// By its own command, without a parser.
#[test]
fn a_client_that_chooses_the_role_reads_what_it_has_written() {
    let primary = own_server();
    let replica = primary.standby();
    let servers = [(&primary, "primary"), (&replica, "replica")];
    let pooler = start(&config_of(&servers).pool("read_your_writes = true"));
    let mut client = client(&pooler);
    client.run("SET SERVER ROLE TO 'primary'");
    client.run("CREATE TABLE t (a int)");
    let mut standby = direct(&replica);
    standby.run("SELECT pg_wal_replay_pause()");
    eventually("it is paused", || {
        standby.value("SELECT pg_get_wal_replay_pause_state()") == "paused"
    });
    client.run("INSERT INTO t VALUES (1)");
    client.run("SET SERVER ROLE TO 'replica'");
    assert_eq!(client.value("SELECT count(*) FROM t"), "1");
    standby.run("SELECT pg_wal_replay_resume()");
    eventually("the replica serves", || {
        client.value(PORT) == port(&replica)
    });
    assert_eq!(client.value("SELECT count(*) FROM t"), "1");
}

/// What was known of a standby is nothing to one that has recovered to an earlier point.
#[test]
fn a_failover_loses_no_client_its_writes() {
    let mut old = own_server();
    let standby = old.standby();
    let servers = [(&standby, "auto"), (&old, "auto")];
    let config = splitting(&servers)
        .pool("read_your_writes = true")
        .general("connect_timeout = 20000");
    let pooler = start(&config);
    let mut client = client(&pooler);
    client.run("CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    eventually("reads go to the standby", || {
        client.value(PORT) == port(&standby)
    });
    old.kill9();
    standby.promote();
    client.run("INSERT INTO t VALUES (2)");
    for _ in 0..20 {
        assert_eq!(client.value("SELECT count(*) FROM t"), "2");
    }
}
