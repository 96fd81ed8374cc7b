//! Mirrors: they get what their server gets, and nobody notices.

use test_support::wire::{Messages, Wire, tags};
use test_support::{Pooler, PoolerConfig, Postgres};

use crate::stage::{client, config_of, eventually, own_server, start};

fn direct(server: &Postgres) -> Wire {
    Wire::connect(server.port(), "postgres", "postgres")
}

/// A pool of one connection to `main`, with `mirror` as its mirror.
fn config(main: &Postgres, mirror: &Postgres) -> PoolerConfig {
    PoolerConfig::new(main)
        .user_with("postgres", 1, "auth_type = \"trust\"")
        .general("admin_auth_type = \"trust\"")
        .shard_line(&format!(
            "mirrors = [[\"127.0.0.1\", {}, 0]]",
            mirror.port()
        ))
}

fn count(server: &Postgres, table: &str) -> String {
    direct(server).value(&format!("SELECT count(*) FROM {table}"))
}

/// Makes a table on both servers.
fn create(servers: &[&Postgres], sql: &str) {
    for server in servers {
        direct(server).run(sql);
    }
}

/// Waits until the mirror follows.
fn await_mirror(client: &mut Wire, mirror: &Postgres) {
    eventually("the mirror follows", || {
        client.run("INSERT INTO probe VALUES (1)");
        count(mirror, "probe") != "0"
    });
}

#[test]
fn a_mirror_gets_what_its_server_gets() {
    let (main, mirror) = (own_server(), own_server());
    create(&[&main, &mirror], "CREATE TABLE probe (a int)");
    let pooler = start(&config(&main, &mirror));
    let mut client = client(&pooler);
    await_mirror(&mut client, &mirror);

    client.run("CREATE TABLE t (a int, b text)");
    client.run("INSERT INTO t VALUES (1, 'simple')");
    client.run("BEGIN");
    client.run("INSERT INTO t VALUES (2, 'rolled back')");
    client.run("ROLLBACK");
    client.run("BEGIN; INSERT INTO t VALUES (3, 'block'); COMMIT");
    client.run("SET application_name = 'mirrored'");
    client.run("INSERT INTO t VALUES (4, current_setting('application_name'))");
    client.send(
        Messages::new()
            .parse("w", "INSERT INTO t VALUES ($1::int, $2)")
            .sync(),
    );
    client.ready();
    for n in ["5", "6"] {
        let bind = Messages::new().bind("", "w", &[Some(n), Some("prepared")]);
        client.send(bind.execute("").sync());
        assert_eq!(tags(&client.ready()), "2CZ");
    }
    client.send(Messages::new().query("COPY t FROM STDIN"));
    client.until(b'G');
    client.send(Messages::new().copy_data(b"7\tcopied\n").copy_done());
    client.ready();
    assert_eq!(sqlstate(&mut client, "INSERT INTO t VALUES ('x')"), "22P02");
    client.run("INSERT INTO t VALUES (8, 'after an error')");

    let all = "SELECT string_agg(a || b, ',' ORDER BY a) FROM t";
    let expected = direct(&main).value(all);
    assert_eq!(expected.matches(',').count(), 6, "{expected}");
    eventually("the mirror has it all", || {
        let messages = direct(&mirror).query(all);
        let row = messages.iter().find(|message| message.tag == b'D');
        row.is_some_and(|row| row.row()[0].as_ref() == Some(&expected))
    });
}

fn sqlstate(client: &mut Wire, sql: &str) -> String {
    test_support::wire::sqlstate(&client.query(sql))
}

/// A mirror that comes late, or comes back, finds the statements prepared and the settings set.
#[test]
fn a_mirror_that_is_down_is_missed_by_nobody() {
    let (main, mut mirror) = (own_server(), own_server());
    create(
        &[&main, &mirror],
        "CREATE TABLE probe (a int); CREATE TABLE t (a int, b text)",
    );
    mirror.stop();
    let pooler = start(&config(&main, &mirror));
    let mut client = client(&pooler);
    client.run("SET application_name = 'early'");
    client.send(
        Messages::new()
            .parse(
                "w",
                "INSERT INTO t VALUES ($1::int, current_setting('application_name'))",
            )
            .sync(),
    );
    assert_eq!(tags(&client.ready()), "1Z");
    let mut write = |n: u32| {
        let bind = Messages::new().bind("", "w", &[Some(&n.to_string())]);
        client.send(bind.execute("").sync());
        assert_eq!(tags(&client.ready()), "2CZ");
    };
    (0..50).for_each(&mut write);
    mirror.restart();
    let mut n = 50;
    let mut until_mirrored = |mirror: &Postgres| {
        eventually("the mirror follows", || {
            n += 1;
            write(n);
            direct(mirror).value(&format!(
                "SELECT count(*) FROM t WHERE a = {n} AND b = 'early'"
            )) == "1"
        });
    };
    until_mirrored(&mirror);
    mirror.kill9();
    mirror.restart();
    until_mirrored(&mirror);
    assert_eq!(statistics(&pooler), 1);
}

/// How many servers are shown.
fn statistics(pooler: &Pooler) -> usize {
    let mut admin = Wire::connect(pooler.port(), "admin", "pgcat");
    let messages = admin.query("SHOW STATS");
    tags(&messages).matches('D').count()
}

/// What a mirror cannot take is cut off, but never in the middle of a transaction.
#[test]
fn a_mirror_that_hangs_keeps_nobody_waiting() {
    let (main, mirror) = (own_server(), own_server());
    create(
        &[&main, &mirror],
        "CREATE TABLE probe (a int); CREATE TABLE t (a int, b text)",
    );
    let pooler = start(&config(&main, &mirror));
    let mut client = client(&pooler);
    await_mirror(&mut client, &mirror);
    let large = "x".repeat(100_000);
    let mut transaction = |n: u32| {
        client.run("BEGIN");
        client.run(&format!("INSERT INTO t VALUES ({n}, '{large}')"));
        client.run(&format!("INSERT INTO t VALUES ({n}, '{large}')"));
        client.run("COMMIT");
    };
    mirror.freeze();
    let mut n = 0;
    // More than sockets and the queue hold.
    eventually("the queue is full", || {
        n += 1;
        transaction(n);
        pooler.log().contains("does not keep up")
    });
    mirror.thaw();
    let frozen = n;
    eventually("the mirror follows again", || {
        n += 1;
        transaction(n);
        direct(&mirror).value(&format!("SELECT count(*) FROM t WHERE a > {frozen}")) != "0"
    });
    assert_eq!(count(&main, "t"), (2 * n).to_string());
    let halves = "SELECT count(*) FROM (SELECT a FROM t GROUP BY a HAVING count(*) <> 2) h";
    eventually("no half of a transaction is there", || {
        direct(&mirror).value(halves) == "0"
    });
    assert!(count(&mirror, "t") != count(&main, "t"));
}

/// Only the server it is the mirror of.
#[test]
fn the_other_servers_are_not_mirrored() {
    let (main, other, mirror) = (own_server(), own_server(), own_server());
    let config = config_of(&[(&main, "primary"), (&other, "replica")]).shard_line(&format!(
        "mirrors = [[\"127.0.0.1\", {}, 1]]",
        mirror.port()
    ));
    create(&[&main, &other, &mirror], "CREATE TABLE probe (a int)");
    let pooler = start(&config);
    let mut client = client(&pooler);
    client.run("SET SERVER ROLE TO 'replica'");
    await_mirror(&mut client, &mirror);
    client.run("SET SERVER ROLE TO 'primary'");
    for _ in 0..20 {
        client.run("INSERT INTO probe VALUES (2)");
    }
    client.run("SET SERVER ROLE TO 'replica'");
    client.run("INSERT INTO probe VALUES (3)");
    let number = |value| format!("SELECT count(*) FROM probe WHERE a = {value}");
    eventually("the mirror has the last", || {
        direct(&mirror).value(&number(3)) == "1"
    });
    assert_eq!(direct(&mirror).value(&number(2)), "0");
}
