//! Prepared statements on servers that serve several clients, and of clients that use several servers.

use test_support::wire::{Messages, Wire, sqlstate, tags};

use crate::prepared::{prepare, run};
use crate::stage::{Stage, direct};

#[test]
fn a_statement_follows_its_client_to_another_server() {
    let stage = Stage::new(2);
    let mut client = stage.client();
    prepare(&mut client, "s", "SELECT $1::text || pg_backend_pid()");
    let first = run(&mut client, "s", "");
    // Which of the two servers is free is up to the occupant; after two occupants of different
    // servers both have been used.
    let mut pids = vec![first];
    for _ in 0..2 {
        let mut occupant = stage.client();
        occupant.run("BEGIN");
        let taken = occupant.value("SELECT pg_backend_pid()");
        let mut second = stage.client();
        if taken != pids[0] {
            // Make the client's own server busy too, by name.
            second.run("BEGIN");
            occupant.run("COMMIT");
        }
        pids.push(run(&mut client, "s", ""));
        client.send(Messages::new().describe_statement("s").sync());
        assert_eq!(tags(&client.ready()), "tTZ");
    }
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), 2, "{pids:?}");
}

/// Both statements of a pipeline are unknown to the server it runs on; replies come in order.
#[test]
fn a_pipeline_on_another_server() {
    let stage = Stage::new(2);
    let mut client = stage.client();
    client.run("BEGIN");
    let home = client.value("SELECT pg_backend_pid()");
    prepare(&mut client, "s1", "SELECT 1, pg_backend_pid()");
    prepare(&mut client, "s2", "SELECT 2");
    // The other server gets busy first, then becomes the only free one.
    let mut other = stage.client();
    other.run("BEGIN");
    client.run("COMMIT");
    let mut occupant = stage.client();
    occupant.run("BEGIN");
    assert_eq!(occupant.value("SELECT pg_backend_pid()"), home);
    other.run("COMMIT");
    client.send(
        Messages::new()
            .bind("", "s1", &[])
            .execute("")
            .parse("s3", "SELECT 3")
            .describe_statement("s2")
            .bind("", "s2", &[])
            .describe_portal("")
            .execute("")
            .bind("", "s3", &[])
            .execute("")
            .close_statement("s3")
            .sync(),
    );
    let messages = client.ready();
    assert_eq!(tags(&messages), "2DC1tT2TDC2DC3Z", "{messages:?}");
    assert_ne!(messages[1].row()[1].as_deref(), Some(home.as_str()));
}

/// The injected Parse comes after an error of the pipeline, so the server skips it.
#[test]
fn a_statement_skipped_on_another_server_is_parsed_again() {
    let stage = Stage::new(2);
    let mut client = stage.client();
    let mut occupant = stage.client();
    prepare(&mut client, "s", "SELECT $1::int + 1");
    occupant.run("BEGIN");
    client.run("BEGIN");
    for _ in 0..2 {
        client.send(
            Messages::new()
                .statement("SELECT 1/0")
                .bind("", "s", &[Some("1")])
                .execute("")
                .sync(),
        );
        assert_eq!(sqlstate(&client.ready()), "22012");
        client.run("ROLLBACK; BEGIN");
    }
    assert_eq!(run(&mut client, "s", "1"), "2");
    client.run("COMMIT");
    occupant.run("COMMIT");
    for _ in 0..4 {
        assert_eq!(run(&mut client, "s", "2"), "3");
    }
}

/// A statement the server does not have yet, in a failed transaction: the error is that of the
/// transaction, and both outlive it.
#[test]
fn a_statement_in_a_failed_transaction_on_another_server() {
    let stage = Stage::new(2);
    let mut client = stage.client();
    client.run("BEGIN");
    prepare(&mut client, "s", "SELECT $1::int + 1");
    let mut other = stage.occupant();
    client.run("COMMIT");
    let mut occupant = stage.occupant();
    other.run("COMMIT");
    client.run("BEGIN");
    client.error("SELECT 1/0");
    client.send(
        Messages::new()
            .bind("", "s", &[Some("1")])
            .execute("")
            .sync(),
    );
    assert_eq!(sqlstate(&client.ready()), "25P02");
    // What PostgreSQL finds before that.
    client.send(Messages::new().bind("", "s", &[]).execute("").sync());
    let replies = client.ready();
    assert_eq!(tags(&replies), "EZ");
    assert_eq!(sqlstate(&replies), "08P01");
    let text = "bind message supplies 0 parameters, but prepared statement \"s\" requires 1";
    assert_eq!(replies[0].field(b'M').as_deref(), Some(text));
    client.run("ROLLBACK");
    assert_eq!(run(&mut client, "s", "1"), "2");
    occupant.run("ROLLBACK");
}

/// The names by which the servers know statements mean nothing to clients.
#[test]
fn names_of_the_pooler_are_unknown_to_clients() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    prepare(&mut client, "s", "SELECT $1::int + 1");
    let name = client.value("SELECT min(name) FROM pg_prepared_statements");
    assert!(name.starts_with("PGCAT_"), "{name}");
    let mut other = stage.client();
    for messages in [
        Messages::new().bind("", &name, &[Some("1")]).execute(""),
        Messages::new().describe_statement(&name),
    ] {
        other.send(messages.sync());
        let replies = other.ready();
        assert_eq!((&*tags(&replies), &*sqlstate(&replies)), ("EZ", "26000"));
    }
    other.send(Messages::new().close_statement(&name).sync());
    assert_eq!(tags(&other.ready()), "3Z");
    assert_eq!(run(&mut client, "s", "1"), "2");
    for sql in [
        format!("DEALLOCATE {name}"),
        format!("DEALLOCATE \"{name}\""),
        format!("SELECT 1; EXECUTE \"{name}\"(1)"),
        format!("DEALLOCATE PREPARE \"{name}\""),
    ] {
        assert_eq!(other.error(&sql), "26000", "{sql}");
        assert_eq!(run(&mut client, "s", "1"), "2", "{sql}");
        other.send(
            Messages::new()
                .statement(&sql.replace("SELECT 1; ", ""))
                .sync(),
        );
        assert_eq!(sqlstate(&other.ready()), "26000", "{sql}");
        assert_eq!(run(&mut client, "s", "1"), "2", "{sql}");
    }
}

#[test]
fn the_unnamed_statement_follows_its_client() {
    let stage = Stage::new(1);
    let mut one = stage.client();
    let mut two = stage.client();
    prepare(&mut one, "", "SELECT $1::int * 2");
    prepare(&mut two, "", "SELECT $1::int * 3");
    for n in 1..5 {
        assert_eq!(run(&mut one, "", &n.to_string()), (n * 2).to_string());
        assert_eq!(run(&mut two, "", &n.to_string()), (n * 3).to_string());
        stage.client().run("SELECT 1");
    }
}

/// What was to give the server one's own unnamed statement, or to close another's, may be skipped.
#[test]
fn the_unnamed_statement_of_another_is_not_run() {
    let stage = Stage::new(1);
    for skipped in ["bind", "parse", "close", "query"] {
        // The second time, what depends on it comes before it is known that it was skipped.
        for at_once in [false, true] {
            let mut one = stage.client();
            let mut two = stage.client();
            prepare(&mut one, "s", "SELECT 1 / $1::int");
            prepare(&mut one, "", "SELECT $1::text || ' of one'");
            prepare(&mut two, "", "SELECT $1::text || ' of two'");
            assert_eq!(run(&mut two, "", "a row"), "a row of two");
            let failing = Messages::new().bind("", "s", &[Some("0")]).execute("");
            let failing = match skipped {
                "bind" => failing.bind("", "", &[Some("a row")]).execute(""),
                "parse" => failing.parse("", "SELECT $1::text || ' of three'"),
                "close" => failing.close_statement(""),
                _ => failing.query("SELECT 1"),
            };
            let run_it = |messages: Messages| {
                let bound = messages.bind("", "", &[Some("a row")]);
                bound.execute("").sync()
            };
            if at_once {
                one.send(run_it(failing.sync()));
                assert_eq!(sqlstate(&one.ready()), "22012", "{skipped}");
            } else {
                one.send(failing.sync());
                assert_eq!(sqlstate(&one.ready()), "22012", "{skipped}");
                one.send(run_it(Messages::new()));
            }
            let messages = one.ready();
            match messages.iter().find(|message| message.tag == b'D') {
                Some(row) => {
                    assert_eq!(row.row(), [Some("a row of one".to_owned())], "{skipped}");
                }
                // PostgreSQL would still have it.
                None => {
                    assert_ne!(skipped, "bind", "{messages:?}");
                    assert_eq!(sqlstate(&messages), "26000", "{skipped}");
                }
            }
        }
    }
}

/// A plugin's statement hides that of another, and its Close does not close that.
#[test]
fn closing_a_listen_does_not_uncover_the_statement_of_another() {
    let stage = Stage::new(1);
    let mut one = stage.client();
    let mut two = stage.client();
    prepare(&mut two, "", "SELECT $1::text || ' of two'");
    assert_eq!(run(&mut two, "", "a row"), "a row of two");
    one.send(
        Messages::new()
            .parse("", "LISTEN somebody")
            .close_statement("")
            .bind("", "", &[Some("a row")])
            .execute("")
            .sync(),
    );
    assert_eq!(sqlstate(&one.ready()), "26000");
}

#[test]
fn clients_do_not_share_names() {
    let stage = Stage::new(1);
    let mut one = stage.client();
    let mut two = stage.client();
    prepare(&mut one, "s", "SELECT $1::int + 1");
    prepare(&mut two, "s", "SELECT $1::int + 2");
    assert_eq!(run(&mut one, "s", "1"), "2");
    assert_eq!(run(&mut two, "s", "1"), "3");
    two.send(Messages::new().close_statement("s").sync());
    two.ready();
    assert_eq!(run(&mut one, "s", "1"), "2");
}

/// PgCat ran one client's statement for another: it hashed text and types without a separator.
#[test]
fn texts_and_types_that_run_together() {
    let stage = Stage::new(1);
    let mut one = stage.client();
    let mut two = stage.client();
    let rows = "SELECT generate_series(1, 20) LIMIT ";
    one.send(
        Messages::new()
            .parse_typed("s", &format!("{rows}1"), &[0])
            .sync(),
    );
    one.ready();
    prepare(&mut two, "s", &format!("{rows}11"));
    two.send(Messages::new().bind("", "s", &[]).execute("").sync());
    assert_eq!(
        two.ready()
            .iter()
            .filter(|message| message.tag == b'D')
            .count(),
        11
    );
    // One text, two types.
    for (oid, value, result) in [
        (23, "7", "7"),
        (25, "7 ", "7 "),
        (20, "8", "8"),
        (16, "t", "t"),
    ] {
        let mut client = stage.client();
        client.send(Messages::new().parse_typed("t", "SELECT $1", &[oid]).sync());
        client.ready();
        assert_eq!(run(&mut client, "t", value), result);
    }
}

/// What one client deallocates on the server, another may still have.
#[test]
fn deallocate_does_not_reach_others() {
    let stage = Stage::new(1);
    let mut one = stage.client();
    let mut two = stage.client();
    prepare(&mut one, "s", "SELECT $1::int + 1");
    for sql in [
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "BEGIN; DEALLOCATE ALL; COMMIT",
        "SELECT 1; DEALLOCATE ALL",
        "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$",
    ] {
        prepare(&mut two, "s", "SELECT $1::int + 1");
        two.query(sql);
        assert_eq!(run(&mut one, "s", "1"), "2", "after {sql}");
        two.send(Messages::new().close_statement("s").sync());
        two.ready();
    }
}

/// Where neither the text nor a command tag tells. A server connection that has lost its statements fails nobody for ever.
#[test]
fn statements_deallocated_by_a_function() {
    direct().run(
        "CREATE OR REPLACE FUNCTION forget_statements() RETURNS void LANGUAGE plpgsql \
         AS $$ BEGIN EXECUTE 'DEAL' || 'LOCATE ALL'; END $$",
    );
    let stage = Stage::new(1);
    let mut clients = [stage.client(), stage.client()];
    for client in &mut clients {
        prepare(client, "s1", "SELECT $1::int + 1");
        prepare(client, "s2", "SELECT $1::int + 2");
    }
    clients[1].run("SELECT forget_statements()");
    let bind = Messages::new().bind("", "s1", &[Some("1")]).execute("");
    clients[0].send(bind.sync());
    let messages = clients[0].ready();
    if tags(&messages).contains('E') {
        let text = messages[0].field(b'M').expect("a message");
        assert_eq!(text, "prepared statement \"s1\" does not exist");
    }
    for client in &mut clients {
        assert_eq!(run(client, "s1", "1"), "2");
        assert_eq!(run(client, "s2", "1"), "3");
    }
}

/// Each parameter's type is named to a server that gets the statement later.
#[test]
fn more_than_32767_parameters_on_another_server() {
    let stage = Stage::new(2);
    let mut client = stage.client();
    let list: Vec<String> = (1..=65_535).map(|n| format!("${n}")).collect();
    let list = list.join(",");
    let sql = format!("SELECT pg_backend_pid(), count(*) FROM unnest(ARRAY[{list}]::int[]) a");
    prepare(&mut client, "s", &sql);
    let mut first = stage.occupant();
    let mut second = stage.occupant();
    let mut pids = Vec::new();
    for occupant in [&mut first, &mut second] {
        occupant.run("COMMIT");
        client.send(
            Messages::new()
                .bind("", "s", &vec![Some("7"); 65_535])
                .execute("")
                .sync(),
        );
        let row = client.ready()[1].row();
        assert_eq!(row[1].as_deref(), Some("65535"));
        pids.push(row[0].clone());
        occupant.run("BEGIN");
    }
    assert_ne!(pids[0], pids[1]);
}

/// More statements than a server keeps, in one pipeline and over many.
#[test]
fn more_statements_than_the_server_keeps() {
    let stage = Stage::with(1, |config| {
        config.pool("prepared_statements_cache_size = 3")
    });
    let mut client = stage.client();
    let mut pipeline = Messages::new();
    for n in 0..10 {
        pipeline = pipeline.parse(&format!("n{n}"), &format!("SELECT $1::int + {n}"));
    }
    for n in 0..10 {
        pipeline = pipeline
            .bind("", &format!("n{n}"), &[Some("100")])
            .execute("");
    }
    client.send(pipeline.sync());
    let messages = client.ready();
    assert_eq!(
        tags(&messages),
        format!("{}{}Z", "1".repeat(10), "2DC".repeat(10)),
        "{messages:?}"
    );
    for round in 0..3 {
        for n in [0, 9, 3, 3, 7, 1, 0] {
            assert_eq!(
                run(&mut client, &format!("n{n}"), "1"),
                (n + 1).to_string(),
                "round {round}"
            );
        }
        // Evictions that are skipped by the server must not be believed.
        let mut failing = Messages::new().statement("SELECT 1/0");
        for n in 0..10 {
            failing = failing.bind("", &format!("n{n}"), &[Some("1")]).execute("");
        }
        client.send(failing.sync());
        assert_eq!(tags(&client.ready()), "1EZ");
    }
    let mut counting = stage.client();
    let kept: u32 = counting
        .value("SELECT count(*) FROM pg_prepared_statements")
        .parse()
        .unwrap();
    assert!(kept <= 4, "{kept} statements on the server");
}

#[test]
fn describe_tells_of_the_present_columns() {
    let table = "DROP TABLE IF EXISTS described; CREATE TABLE described (a int); INSERT INTO described VALUES (1)";
    direct().run(table);
    let stage = Stage::new(1);
    let sql = "SELECT * FROM described";
    let mut old = stage.client();
    prepare(&mut old, "s", sql);
    old.send(Messages::new().bind("", "s", &[]).execute("").sync());
    old.ready();
    direct().run("ALTER TABLE described ADD b text");
    // On a direct connection a new Parse never fails so; the pooler's server has an old one.
    let mut new = stage.client();
    for _ in 0..2 {
        prepare(&mut new, "s", sql);
        new.send(
            Messages::new()
                .describe_statement("s")
                .bind("", "s", &[])
                .describe_portal("")
                .execute("")
                .sync(),
        );
        let messages = new.ready();
        assert_eq!(tags(&messages), "tT2TDCZ", "{messages:?}");
        assert_eq!(messages[4].row().len(), 2);
        new.send(Messages::new().close_statement("s").sync());
        new.ready();
    }
    // The old client hears what PostgreSQL would tell it, at most, and lives on.
    old.send(Messages::new().bind("", "s", &[]).execute("").sync());
    let messages = old.ready();
    if tags(&messages).contains('E') {
        assert_eq!(sqlstate(&messages), "0A000");
    }
    old.send(
        Messages::new()
            .close_statement("s")
            .parse("s", sql)
            .bind("", "s", &[])
            .execute("")
            .sync(),
    );
    assert_eq!(tags(&old.ready()), "312DCZ");
}

#[test]
fn one_text_under_two_search_paths() {
    direct().run(
        "DROP SCHEMA IF EXISTS path_a, path_b CASCADE; CREATE SCHEMA path_a CREATE TABLE found (a int);
         CREATE SCHEMA path_b CREATE TABLE found (b text, c int);
         INSERT INTO path_a.found VALUES (1); INSERT INTO path_b.found VALUES ('b', 2)",
    );
    one_text("SET search_path = path_a", "SET search_path = path_b");
}

/// The default path has a "$user" in it.
#[test]
fn one_text_under_two_roles() {
    direct().run(
        "DROP SCHEMA IF EXISTS reads_a, reads_b CASCADE; DROP ROLE IF EXISTS reads_a; DROP ROLE IF EXISTS reads_b;
         CREATE ROLE reads_a; CREATE ROLE reads_b;
         CREATE SCHEMA AUTHORIZATION reads_a CREATE TABLE found (a int);
         CREATE SCHEMA AUTHORIZATION reads_b CREATE TABLE found (b text, c int);
         INSERT INTO reads_a.found VALUES (1); INSERT INTO reads_b.found VALUES ('b', 2)",
    );
    one_text("SET ROLE reads_a", "SET ROLE reads_b");
    direct().run("DROP SCHEMA reads_a, reads_b CASCADE; DROP ROLE reads_a, reads_b");
}

/// A text that means a table of one column to one client, and one of two to the other.
fn one_text(setting_of_a: &str, setting_of_b: &str) {
    let stage = Stage::new(1);
    let mut a = stage.client();
    let mut b = stage.client();
    a.run(setting_of_a);
    b.run(setting_of_b);
    for (client, columns) in [(&mut a, 1), (&mut b, 2)] {
        prepare(client, "s", "SELECT * FROM found");
        client.send(
            Messages::new()
                .bind("", "s", &[])
                .describe_portal("")
                .execute("")
                .sync(),
        );
        let messages = client.ready();
        assert_eq!(tags(&messages), "2TDCZ", "{messages:?}");
        assert_eq!(messages[2].row().len(), columns);
    }
    for (client, columns) in [(&mut b, 2), (&mut a, 1)] {
        client.send(Messages::new().bind("", "s", &[]).execute("").sync());
        let messages = client.ready();
        assert_eq!(tags(&messages), "2DCZ", "{messages:?}");
        assert_eq!(messages[1].row().len(), columns);
    }
}

#[test]
fn sql_prepare_does_not_reach_others() {
    let stage = Stage::new(1);
    stage.client().run("PREPARE leaked AS SELECT 1");
    stage.assert_clean();
    assert_eq!(stage.client().error("EXECUTE leaked"), "26000");
}

#[test]
fn many_clients_with_the_same_and_different_statements() {
    let stage = Stage::new(3);
    let port = stage.pooler.port();
    let clients: Vec<_> = (0..12)
        .map(|client| {
            std::thread::spawn(move || {
                let mut wire = Wire::connect(port, "postgres", "postgres");
                for n in 0..20 {
                    prepare(
                        &mut wire,
                        &format!("s{n}"),
                        &format!("SELECT $1::int + {}", n + client % 3),
                    );
                }
                for round in 0..30 {
                    let n = (round * 7 + client) % 20;
                    assert_eq!(
                        run(&mut wire, &format!("s{n}"), "1000"),
                        (1000 + n + client % 3).to_string()
                    );
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("a client");
    }
}
