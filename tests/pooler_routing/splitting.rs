//! Reads on replicas and writes on the primary.

use test_support::wire::{Messages, Wire, sqlstate, tags};
use test_support::{Pooler, PoolerConfig};

use crate::stage::{HOST, HOSTS, client, config, config_of, eventually, own_server, server, start};

const PRIMARY: &str = HOSTS[0];
const REPLICA: &str = HOSTS[1];

fn splitting(configure: impl Fn(PoolerConfig) -> PoolerConfig) -> (Pooler, Wire) {
    let config = config(&["primary", "replica"])
        .pool("query_parser_enabled = true")
        .pool("query_parser_read_write_splitting = true");
    let pooler = start(&configure(config));
    let mut client = client(&pooler);
    // Until the functions are known, what calls them counts as a write.
    eventually("reads go to the replica", || client.value(HOST) == REPLICA);
    (pooler, client)
}

/// Where a statement with this text runs, whose first column says so.
fn place(client: &mut Wire, sql: &str) -> String {
    let messages = client.query(sql);
    let rows: Vec<_> = messages
        .iter()
        .filter(|message| message.tag == b'D')
        .collect();
    match rows.first() {
        Some(row) => row.row()[0].clone().expect("a host"),
        None => panic!("{sql}: {messages:?}"),
    }
}

fn prepare_table(name: &str) {
    let mut direct = Wire::connect(server().port(), "postgres", "postgres");
    direct.run(&format!(
        "DROP TABLE IF EXISTS {name}; CREATE TABLE {name} (a int, h text); INSERT INTO {name} VALUES (0, '')"
    ));
}

/// PgCat sends most of these to a replica (research, probe 26; issues 489, 829, 865, 884, 887).
#[test]
fn hidden_writes_go_to_the_primary() {
    prepare_table("hidden");
    let mut direct = Wire::connect(server().port(), "postgres", "postgres");
    direct.run(
        "DROP FUNCTION IF EXISTS writes(), steady(); DROP SEQUENCE IF EXISTS numbers;
         CREATE SEQUENCE numbers;
         CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION steady() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'",
    );
    let (_pooler, mut client) = splitting(|config| config);
    const HERE: &str = "host(inet_server_addr())";
    for (sql, host) in [
        (format!("SELECT {HERE}"), REPLICA),
        (
            format!("SELECT {HERE}, count(*), now(), random(), upper('x') FROM hidden"),
            REPLICA,
        ),
        (
            format!("WITH x AS (SELECT {HERE}) SELECT * FROM x"),
            REPLICA,
        ),
        (format!("SELECT {HERE}, steady()"), REPLICA),
        (
            format!("COPY (SELECT {HERE}) TO STDOUT; SELECT {HERE}"),
            REPLICA,
        ),
        (format!("BEGIN READ ONLY; SELECT {HERE}; COMMIT"), REPLICA),
        (
            format!("WITH x AS (INSERT INTO hidden VALUES (1) RETURNING {HERE}) SELECT * FROM x"),
            PRIMARY,
        ),
        (
            format!("WITH x AS (DELETE FROM hidden WHERE a = 1 RETURNING 1) SELECT {HERE}"),
            PRIMARY,
        ),
        (
            format!("SELECT {HERE} FROM hidden FOR NO KEY UPDATE"),
            PRIMARY,
        ),
        (
            format!("SELECT {HERE} FROM (SELECT * FROM hidden FOR SHARE) x"),
            PRIMARY,
        ),
        (format!("SELECT {HERE}, nextval('numbers')"), PRIMARY),
        (format!("SELECT {HERE}, setval('numbers', 5)"), PRIMARY),
        (format!("SELECT {HERE}, pg_advisory_xact_lock(1)"), PRIMARY),
        (
            format!("SELECT {HERE}, \"pg_catalog\".PG_NOTIFY('a', 'b')"),
            PRIMARY,
        ),
        (format!("SELECT {HERE}, writes()"), PRIMARY),
        (format!("UPDATE hidden SET a = a RETURNING {HERE}"), PRIMARY),
        (format!("SELECT {HERE}; UPDATE hidden SET a = a"), PRIMARY),
        (format!("BEGIN; SELECT {HERE}; COMMIT"), PRIMARY),
        (
            format!("/* read */ INSERT INTO hidden VALUES (1) RETURNING {HERE}"),
            PRIMARY,
        ),
    ] {
        assert_eq!(place(&mut client, &sql), host, "{sql}");
        // Nothing of it stays: the next read is a read, the next unparsable text a write.
        assert_eq!(client.value(HOST), REPLICA, "after {sql}");
    }
    // The server gets to refuse what the parser cannot read.
    assert_eq!(client.error("SELEC 1"), "42601");
}

/// What a read calls without naming it: through views, policies, operators and casts.
#[test]
fn calls_that_are_not_named_are_seen() {
    let mut direct = Wire::connect(server().port(), "postgres", "postgres");
    direct.run(
        "DROP SCHEMA IF EXISTS unnamed CASCADE; CREATE SCHEMA unnamed; SET search_path = unnamed;
         CREATE TABLE plain (a int); CREATE SEQUENCE s; CREATE TABLE guarded (a int);
         CREATE FUNCTION notes(int) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE FUNCTION harmless(int) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE VIEW quiet AS SELECT a, random(), upper('x') FROM plain;
         CREATE VIEW builtin AS SELECT nextval('s');
         CREATE VIEW own AS SELECT a FROM plain WHERE notes(a);
         CREATE VIEW nested AS SELECT * FROM (SELECT * FROM quiet) q WHERE EXISTS (SELECT FROM own);
         CREATE VIEW declared AS SELECT harmless(1);
         CREATE VIEW locks AS SELECT * FROM pg_locks;
         CREATE POLICY p ON guarded USING (notes(a));
         CREATE OPERATOR ### (FUNCTION = notes, RIGHTARG = int);
         CREATE OPERATOR #### (FUNCTION = harmless, RIGHTARG = int);
         CREATE TYPE noted AS (a int);
         CREATE FUNCTION to_noted(int) RETURNS noted LANGUAGE sql AS 'SELECT ROW($1)::unnamed.noted';
         CREATE CAST (int AS noted) WITH FUNCTION to_noted;
         CREATE VIEW shows AS SELECT ### 1 AS x",
    );
    let (_pooler, mut client) =
        splitting(|config| config.pool("read_only_functions = [\"harmless\"]"));
    client.run("SET search_path = unnamed");
    const HERE: &str = "host(inet_server_addr())";
    for (sql, host) in [
        (format!("SELECT {HERE}, count(*) FROM quiet"), REPLICA),
        (format!("SELECT {HERE}, count(*) FROM declared"), REPLICA),
        (format!("SELECT {HERE}, count(*) FROM locks"), REPLICA),
        (format!("SELECT {HERE}, count(*) FROM pg_locks"), REPLICA),
        (format!("SELECT {HERE}, #### 1"), REPLICA),
        (
            format!("SELECT {HERE}, 1::text, 1 + 1 BETWEEN 1 AND 2"),
            REPLICA,
        ),
        (format!("SELECT {HERE}, count(*) FROM builtin"), PRIMARY),
        (format!("SELECT {HERE}, count(*) FROM unnamed.own"), PRIMARY),
        (format!("SELECT {HERE}, count(*) FROM nested"), PRIMARY),
        (format!("SELECT {HERE}, count(*) FROM shows"), PRIMARY),
        (format!("SELECT {HERE}, count(*) FROM guarded"), PRIMARY),
        (format!("SELECT {HERE}, ### 1"), PRIMARY),
        (format!("SELECT {HERE}, OPERATOR(unnamed.###) 1"), PRIMARY),
        (format!("SELECT {HERE}, 1::noted"), PRIMARY),
    ] {
        assert_eq!(place(&mut client, &sql), host, "{sql}");
    }
    // One that is created through the pooler is soon known.
    client.run("CREATE VIEW late AS SELECT nextval('s')");
    let late = format!("SELECT {HERE}, count(*) FROM late");
    eventually("the new view is known", || {
        place(&mut client, &late) == PRIMARY
    });
}

#[test]
fn transactions_run_in_one_place() {
    let (_pooler, mut client) = splitting(|config| config);
    client.run("BEGIN");
    assert_eq!(client.value(HOST), PRIMARY);
    client.run("COMMIT");
    client.run("BEGIN READ ONLY");
    assert_eq!(client.value(HOST), REPLICA);
    assert_eq!(client.error("CREATE TABLE nowhere ()"), "25006");
    client.run("ROLLBACK");
    client.run("START TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE");
    assert_eq!(client.value(HOST), PRIMARY);
    client.run("COMMIT");
}

/// A read, then a write, in one packet: the write must not run where the read does, and not before.
#[test]
fn pipelined_statements_go_where_they_belong() {
    prepare_table("piped");
    let (_pooler, mut client) = splitting(|config| config);
    for _ in 0..20 {
        client.send(
            Messages::new()
                .query(HOST)
                .query("UPDATE piped SET h = host(inet_server_addr()) WHERE a = 0 RETURNING h")
                .query(HOST)
                .statement("INSERT INTO piped VALUES (2, host(inet_server_addr())) RETURNING h")
                .sync()
                .statement(HOST)
                .sync(),
        );
        let replies: Vec<_> = (0..5).flat_map(|_| client.ready()).collect();
        let places: Vec<_> = replies
            .iter()
            .filter(|message| message.tag == b'D')
            .map(|row| row.row()[0].clone().unwrap_or_default())
            .collect();
        assert_eq!(places, [REPLICA, PRIMARY, REPLICA, PRIMARY, REPLICA]);
    }
}

/// PgCat decides at Parse, for whatever is executed later (research, probe 27).
#[test]
fn prepared_statements_go_where_they_belong() {
    prepare_table("prepared");
    let (_pooler, mut client) = splitting(|config| config);
    client.send(
        Messages::new()
            .parse(
                "w",
                "INSERT INTO prepared VALUES ($1, host(inet_server_addr())) RETURNING h",
            )
            .sync()
            .parse("r", HOST)
            .describe_statement("r")
            .sync(),
    );
    assert_eq!(tags(&client.ready()), "1Z");
    assert_eq!(tags(&client.ready()), "1tTZ");
    let mut run = |messages: Messages| {
        client.send(messages);
        let replies = client.ready();
        let row = replies.iter().find(|message| message.tag == b'D');
        row.unwrap_or_else(|| panic!("{replies:?}")).row()[0]
            .clone()
            .unwrap()
    };
    for _ in 0..5 {
        let write = Messages::new()
            .bind("", "w", &[Some("1")])
            .execute("")
            .sync();
        assert_eq!(run(write), PRIMARY);
        let read = Messages::new().bind("", "r", &[]).execute("").sync();
        assert_eq!(run(read), REPLICA);
    }
    // A batch is one transaction: a read in it is done where its write is.
    let both = Messages::new()
        .bind("", "r", &[])
        .execute("")
        .bind("", "w", &[Some("1")])
        .execute("")
        .sync();
    assert_eq!(run(both), PRIMARY);
}

/// The messages of a batch may come one by one, and are not sent before it is known what they are.
#[test]
fn a_batch_that_comes_in_pieces() {
    prepare_table("pieces");
    let (_pooler, mut client) = splitting(|config| config);
    let batch = Messages::new()
        .statement(HOST)
        .statement("INSERT INTO pieces VALUES (1)")
        .sync();
    client.send_pieces(&batch, 3);
    assert_eq!(tags(&client.ready()), "12DC12CZ");
    // Who asks for replies by Flush gets them.
    client.send(
        Messages::new()
            .parse("", HOST)
            .describe_statement("")
            .flush(),
    );
    assert_eq!(tags(&client.until(b'T')), "1tT");
    client.send(Messages::new().bind("", "", &[]).execute("").sync());
    assert_eq!(tags(&client.ready()), "2DCZ");
    // A value larger than what is waited for.
    let large = "x".repeat(300_000);
    client.send(
        Messages::new()
            .parse("", "INSERT INTO pieces VALUES (2, $1)")
            .bind("", "", &[Some(&large)])
            .execute("")
            .sync(),
    );
    assert_eq!(tags(&client.ready()), "12CZ");
}

#[test]
fn the_client_and_the_pool_may_choose() {
    let (_pooler, mut client) = splitting(|config| config);
    assert_eq!(client.value("SHOW SERVER ROLE"), "auto");
    client.run("SET SERVER ROLE TO 'primary'");
    assert_eq!(client.value(HOST), PRIMARY);
    client.run("SET SERVER ROLE TO 'auto'");
    assert_eq!(client.value(HOST), REPLICA);
    client.run("SET PRIMARY READS TO on");
    let seen = crate::stage::tally(&mut client, HOST, 60);
    assert_eq!(seen.len(), 2, "{seen:?}");

    let (_pooler, mut client) = splitting(|config| {
        config
            .pool("read_only_functions = [\"declared\"]")
            .pool("query_parser_max_length = 200")
    });
    let mut direct = Wire::connect(server().port(), "postgres", "postgres");
    direct.run("CREATE OR REPLACE FUNCTION declared() RETURNS int LANGUAGE sql AS 'SELECT 1'");
    assert_eq!(
        place(&mut client, "SELECT host(inet_server_addr()), declared()"),
        REPLICA
    );
    let long = format!("{HOST} /* {} */", "x".repeat(200));
    assert_eq!(client.value(&long), PRIMARY);
}

/// A client that was there before follows what it has not chosen for itself.
#[test]
fn a_reload_turns_splitting_on() {
    let config = config(&["primary", "replica"]).pool("default_role = \"primary\"");
    let pooler = start(&config);
    let mut client = client(&pooler);
    assert_eq!(client.value(HOST), PRIMARY);
    let config = config
        .pool("query_parser_enabled = true")
        .pool("query_parser_read_write_splitting = true");
    std::fs::write(pooler.config_path(), config.render(pooler.port())).expect("pgcat.toml");
    pooler.signal("HUP");
    eventually("reads go to the replica", || client.value(HOST) == REPLICA);
    assert_eq!(client.value("SHOW SERVER ROLE"), "auto");
}

/// PgCat fails every SELECT then (research, probe 28).
#[test]
fn a_pool_without_replicas_reads_on_the_primary() {
    let config = config(&["primary"])
        .pool("query_parser_enabled = true")
        .pool("query_parser_read_write_splitting = true");
    let pooler = start(&config);
    assert_eq!(client(&pooler).value(HOST), PRIMARY);
}

/// With nothing to move a session, the server it begins on must be one for everything.
#[test]
fn a_session_begins_on_the_primary() {
    prepare_table("sessions");
    let config = config(&["primary", "replica"])
        .session_mode()
        .pool("query_parser_enabled = true")
        .pool("query_parser_read_write_splitting = true");
    let pooler = start(&config);
    for _ in 0..10 {
        let mut client = client(&pooler);
        assert_eq!(client.value(HOST), PRIMARY);
        client.run("INSERT INTO sessions VALUES (1)");
    }
}

#[test]
fn what_was_just_written_is_read_on_the_primary() {
    prepare_table("active");
    prepare_table("quiet");
    let (_pooler, mut client) = splitting(|config| {
        config
            .pool("db_activity_based_routing = true")
            .pool("table_mutation_cache_ms_ttl = 60000")
            .pool("db_activity_init_delay = 1")
    });
    let read = |table| format!("SELECT host(inet_server_addr()) FROM {table}");
    assert_eq!(place(&mut client, &read("active")), REPLICA);
    client.run("UPDATE active SET a = 1");
    assert_eq!(place(&mut client, &read("active")), PRIMARY);
    assert_eq!(place(&mut client, &read("quiet")), REPLICA);
    assert_eq!(place(&mut client, &read("quiet, public.active")), PRIMARY);
}

/// On a real standby, where a misplaced write is an error.
#[test]
fn a_real_standby_serves_reads_only() {
    let primary = own_server();
    let standby = primary.standby();
    let config = config_of(&[(&primary, "auto"), (&standby, "auto")])
        .pool("query_parser_enabled = true")
        .pool("query_parser_read_write_splitting = true");
    let pooler = start(&config);
    let mut client = client(&pooler);
    eventually("reads go to the standby", || {
        client.value("SELECT pg_is_in_recovery()") == "t"
    });
    client.run("CREATE TABLE t (a int); CREATE SEQUENCE s");
    for n in 0..20 {
        client.run(&format!("INSERT INTO t VALUES ({n})"));
        assert_eq!(client.value("SELECT pg_is_in_recovery()"), "t");
        client.run("SELECT nextval('s')");
        client.send(Messages::new().statement("UPDATE t SET a = a + 1").sync());
        assert_eq!(sqlstate_or_none(&client.ready()), None);
        client.run("BEGIN; SELECT 1; DELETE FROM t WHERE a = 1000; COMMIT");
    }
    eventually("the standby has it all", || {
        // Until it has the table this is an error.
        let messages = client.query("SELECT count(*) FROM t");
        let row = messages.iter().find(|message| message.tag == b'D');
        row.is_some_and(|row| row.row()[0].as_deref() == Some("20"))
    });
}

fn sqlstate_or_none(messages: &[test_support::wire::Message]) -> Option<String> {
    tags(messages).contains('E').then(|| sqlstate(messages))
}
