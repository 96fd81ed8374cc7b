//! Session settings go with the client, and nothing else of a session stays on a server connection.

use test_support::wire::{Messages, Wire, tags};

use crate::stage::{Stage, direct, same, server};

fn setting(wire: &mut Wire, name: &str) -> String {
    wire.value(&format!("SHOW {name}"))
}

const VALUES: &[(&str, &str, &str)] = &[
    (
        "application_name",
        "'O''Brien \\ \"; DROP TABLE x; --'",
        "O'Brien \\ \"; DROP TABLE x; --",
    ),
    ("DateStyle", "'German'", "German, DMY"),
    ("TimeZone", "'Pacific/Honolulu'", "Pacific/Honolulu"),
    (
        "search_path",
        "\"$user\", public, \"Quoted, \"\"it\"\"\"",
        "\"$user\", public, \"Quoted, \"\"it\"\"\"",
    ),
    ("statement_timeout", "54321", "54321ms"),
    ("IntervalStyle", "iso_8601", "iso_8601"),
    ("extra_float_digits", "0", "0"),
    ("standard_conforming_strings", "off", "off"),
    ("client_encoding", "'LATIN1'", "LATIN1"),
    ("work_mem", "'64kB'", "64kB"),
    (
        "default_transaction_isolation",
        "'repeatable read'",
        "repeatable read",
    ),
    ("my.setting", "'custom'", "custom"),
];

/// One server connection, two clients in turn.
#[test]
fn every_client_has_its_own() {
    let stage = Stage::new(1);
    for (name, value, shown) in VALUES {
        let mut one = stage.client();
        let mut two = stage.client();
        if name.contains('.') {
            two.run(&format!("SET {name} = ''"));
        }
        let default = setting(&mut two, name);
        one.run(&format!("SET {name} = {value}"));
        for _ in 0..2 {
            assert_eq!(setting(&mut two, name), default, "{name} of another client");
            assert_eq!(setting(&mut one, name), *shown, "{name}");
        }
        one.run(&format!("RESET {name}"));
        if !name.contains('.') {
            assert_eq!(setting(&mut one, name), default, "{name} after RESET");
        }
        drop((one, two));
        if !name.contains('.') {
            stage.assert_clean();
        }
    }
}

#[test]
fn settings_follow_to_another_server() {
    let stage = Stage::new(2);
    let mut client = stage.client();
    for (name, value, _) in VALUES {
        client.run(&format!("SET {name} = {value}"));
    }
    let mut pids = Vec::new();
    for _ in 0..2 {
        client.run("BEGIN");
        pids.push(client.value("SELECT pg_backend_pid()"));
        // The next occupant takes the other server, so that this one is free when that is not.
        let mut other = stage.occupant();
        client.run("COMMIT");
        let _occupant = stage.occupant();
        other.run("COMMIT");
        pids.push(client.value("SELECT pg_backend_pid()"));
        for (name, _, shown) in VALUES {
            assert_eq!(setting(&mut client, name), *shown, "{name}");
        }
    }
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), 2);
}

#[test]
fn a_rolled_back_setting_is_not_kept() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("SET statement_timeout = '11s'");
    client.run(
        "BEGIN; SET statement_timeout = '22s'; SET application_name = 'rolled back'; ROLLBACK",
    );
    stage.client().run("SELECT 1");
    assert_eq!(setting(&mut client, "statement_timeout"), "11s");
    assert_eq!(setting(&mut client, "application_name"), "");
    client.run("BEGIN; SAVEPOINT a; SET statement_timeout = '33s'; ROLLBACK TO a; COMMIT");
    stage.client().run("SELECT 1");
    assert_eq!(setting(&mut client, "statement_timeout"), "11s");
    client.run("BEGIN; SET statement_timeout = '44s'; COMMIT");
    stage.client().run("SELECT 1");
    assert_eq!(setting(&mut client, "statement_timeout"), "44s");
    client.run("BEGIN; SET LOCAL statement_timeout = '55s'; COMMIT");
    stage.client().run("SELECT 1");
    assert_eq!(setting(&mut client, "statement_timeout"), "44s");
    client.error("SET statement_timeout = 'nonsense'");
    assert_eq!(setting(&mut client, "statement_timeout"), "44s");
    client.run("RESET ALL");
    assert_eq!(setting(&mut client, "statement_timeout"), "0");
    stage.assert_clean();
}

/// An error after SET in the same Query takes it back: the statements are one transaction.
#[test]
fn a_setting_in_a_failed_query_is_not_kept() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.error("SET statement_timeout = '11s'; SELECT 1/0");
    assert_eq!(setting(&mut client, "statement_timeout"), "0");
    client.send(
        Messages::new()
            .statement("SET statement_timeout = '12s'")
            .statement("SELECT 1/0")
            .sync(),
    );
    client.ready();
    stage.client().run("SELECT 1");
    assert_eq!(setting(&mut client, "statement_timeout"), "0");
    client.send(
        Messages::new()
            .statement("SET statement_timeout = '13s'")
            .sync(),
    );
    client.ready();
    stage.client().run("SELECT 1");
    assert_eq!(setting(&mut client, "statement_timeout"), "13s");
}

/// They are set on the server connection with the batch, but are no part of it: what fails takes nothing of them back.
#[test]
fn settings_that_come_with_a_batch_that_fails() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("SET work_mem = '9MB'");
    for (failing, readies) in [
        (Messages::new().statement("SELECT 1/0").sync(), 1),
        (Messages::new().parse("", "SELECT syntax error").sync(), 1),
        (Messages::new().bind("", "unknown", &[]).sync(), 1),
        (Messages::new().query("SELECT 1/0"), 1),
        (Messages::new().query("SELECT 1; SELECT 1/0"), 1),
        (Messages::new().query("SELECT 'syntax"), 1),
        (
            Messages::new()
                .statement("BEGIN")
                .statement("SELECT 1/0")
                .sync()
                .query("ROLLBACK"),
            2,
        ),
    ] {
        let mut other = stage.client();
        other.run("SET work_mem = '3MB'");
        // Once with the next statement on its way already.
        client.send(failing.clone().query("SHOW work_mem"));
        for _ in 0..readies {
            client.ready();
        }
        let shown = client.ready();
        assert_eq!(shown[1].row(), [Some("9MB".to_owned())], "{failing:?}");
        assert_eq!(setting(&mut other, "work_mem"), "3MB", "{failing:?}");
        client.send(&failing);
        for _ in 0..readies {
            client.ready();
        }
        assert_eq!(setting(&mut client, "work_mem"), "9MB", "{failing:?}");
        assert_eq!(setting(&mut other, "work_mem"), "3MB", "{failing:?}");
    }
}

/// They belong to the transaction, and are no settings of the session.
#[test]
fn properties_of_a_transaction_end_with_it() {
    same(|wire| {
        for begin in [
            "BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            "BEGIN; SET LOCAL transaction_isolation = 'serializable'; SET CONSTRAINTS ALL DEFERRED",
            "BEGIN; SELECT set_config('transaction_read_only', 'on', false)",
        ] {
            wire.query(begin);
            wire.query("SHOW transaction_isolation");
            wire.query("SHOW transaction_read_only");
            wire.query("COMMIT");
            wire.query("SHOW transaction_isolation");
            wire.query("SHOW transaction_read_only");
            wire.query("SHOW transaction_deferrable");
        }
        wire.query("SET TRANSACTION READ ONLY");
        wire.query("SET CONSTRAINTS ALL DEFERRED");
        wire.query("SHOW transaction_read_only");
    });
}

#[test]
fn discard_all_goes_back_to_the_startup_message() {
    let stage = Stage::new(1);
    let parameters = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("application_name", "mine"),
        ("options", "-c statement_timeout=77s"),
    ];
    let client = &mut Wire::connect_with(stage.pooler.port(), &parameters);
    for extended in [false, true] {
        client.run(
            "SET statement_timeout = '1h'; SET application_name = 'other'; SET work_mem = '2MB'",
        );
        stage.client().run("SELECT 1");
        if extended {
            client.send(Messages::new().statement("DISCARD ALL").sync());
            assert!(!tags(&client.ready()).contains('E'));
        } else {
            client.run("DISCARD ALL");
        }
        stage.client().run("SELECT 1");
        let shown =
            ["statement_timeout", "application_name", "work_mem"].map(|name| setting(client, name));
        assert_eq!(shown, ["77s", "mine", "4MB"]);
    }
    stage.assert_clean();
}

/// pg_dump sets an empty search_path so.
#[test]
fn set_config_does_not_reach_others() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("SELECT pg_catalog.set_config('search_path', '', false)");
    assert_eq!(
        setting(&mut stage.client(), "search_path"),
        "\"$user\", public"
    );
    assert_eq!(setting(&mut client, "search_path"), "");
    stage.assert_clean();
}

#[test]
fn roles_do_not_reach_others() {
    direct().run("DO $$ BEGIN CREATE ROLE actor; EXCEPTION WHEN duplicate_object THEN END $$");
    let stage = Stage::new(1);
    for sql in [
        "SET ROLE actor",
        "SET SESSION AUTHORIZATION actor",
        "BEGIN; SET ROLE actor; COMMIT",
        "SELECT set_config('role', 'actor', false)",
    ] {
        let mut client = stage.client();
        client.run(sql);
        assert_eq!(
            stage.client().value("SELECT current_user"),
            "postgres",
            "{sql}"
        );
        assert_eq!(client.value("SELECT current_user"), "actor", "{sql}");
        assert_eq!(
            stage.client().value("SELECT current_user"),
            "postgres",
            "{sql}"
        );
        drop(client);
        stage.assert_clean();
    }
}

#[test]
fn session_objects_do_not_reach_others() {
    let mut leaks = Vec::new();
    for sql in [
        "CREATE TEMP TABLE left_behind (a int)",
        "BEGIN; CREATE TEMP TABLE left_behind (a int); COMMIT",
        "CREATE TEMP SEQUENCE left_behind",
        "SELECT 1 AS a INTO TEMP left_behind",
        "CREATE TEMP VIEW left_behind AS SELECT 1",
        "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "SELECT pg_advisory_lock(1)",
        "BEGIN; SELECT pg_advisory_lock(2); COMMIT",
        "LISTEN left_behind",
        "PREPARE left_behind AS SELECT 1",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0",
        "SELECT set_config('work_mem', '1MB', false)",
        "DO $$ BEGIN PERFORM set_config('work_mem', '1MB', false); END $$",
        "DO $$ BEGIN CREATE TEMP TABLE left_behind (a int); END $$",
    ] {
        let stage = Stage::new(1);
        let mut client = stage.client();
        let messages = client.query(sql);
        assert!(!tags(&messages).contains('E'), "{messages:?}");
        drop(client);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stage.assert_clean())).is_err()
        {
            leaks.push(sql);
        }
    }
    assert!(leaks.is_empty(), "left behind: {leaks:#?}");
}

#[test]
fn a_long_value() {
    let stage = Stage::new(1);
    let path: Vec<String> = (0..100)
        .map(|n| format!("\"schema {n}, with 'quotes'\""))
        .collect();
    let path = path.join(", ");
    let mut client = stage.client();
    client.run(&format!("SET search_path = {path}"));
    assert_eq!(
        setting(&mut stage.client(), "search_path"),
        "\"$user\", public"
    );
    assert_eq!(setting(&mut client, "search_path"), path);
}

#[test]
fn startup_options_come_before_the_other_parameters() {
    let stage = Stage::new(1);
    let options = (
        "options",
        "-c IntervalStyle=iso_8601 -c application_name=b -c work_mem=1MB -c work_mem=2MB",
    );
    let others = [
        ("application_name", "a"),
        ("IntervalStyle", "postgres_verbose"),
    ];
    let who = [("user", "postgres"), ("database", "postgres")];
    for parameters in [
        [&who[..], &[options], &others].concat(),
        [&who[..], &others, &[options]].concat(),
    ] {
        let expected = &mut Wire::connect_with(server().port(), &parameters);
        let client = &mut Wire::connect_with(stage.pooler.port(), &parameters);
        for name in ["application_name", "IntervalStyle", "work_mem"] {
            assert_eq!(setting(client, name), setting(expected, name), "{name}");
        }
    }
}

#[test]
fn startup_options_are_defaults_of_the_session() {
    let stage = Stage::new(1);
    let parameters = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("application_name", "it's me"),
        ("search_path", "\"a b\", public"),
        (
            "options",
            "-c statement_timeout=77s --work-mem=1MB -c my.value=a\\ b\\\\c+d",
        ),
    ];
    let expected = &mut Wire::connect_with(server().port(), &parameters);
    let client = &mut Wire::connect_with(stage.pooler.port(), &parameters);
    for name in [
        "application_name",
        "search_path",
        "statement_timeout",
        "work_mem",
        "my.value",
    ] {
        stage.client().run("SELECT 1");
        assert_eq!(setting(client, name), setting(expected, name), "{name}");
    }
    client.run("SET statement_timeout = '1h'; SET application_name = 'other'");
    client.run("RESET statement_timeout; RESET application_name");
    stage.client().run("SELECT 1");
    for name in ["application_name", "statement_timeout"] {
        assert_eq!(
            setting(client, name),
            setting(expected, name),
            "{name} after RESET"
        );
    }
    client.run("SET work_mem = '2MB'");
    client.run("RESET ALL");
    stage.client().run("SELECT 1");
    for name in [
        "application_name",
        "search_path",
        "statement_timeout",
        "work_mem",
        "my.value",
    ] {
        assert_eq!(
            setting(client, name),
            setting(expected, name),
            "{name} after RESET ALL"
        );
    }
    stage.assert_clean();
}

/// pgjdbc asks for `ISO`, asyncpg for `'utf-8'`: the server has its own spelling for both, and a
/// comparison of texts would set them again for every transaction.
#[test]
fn settings_in_other_words_cost_nothing() {
    let stage = Stage::new(1);
    direct().run("SELECT pg_stat_reset()");
    let parameters = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("DateStyle", "ISO"),
        ("client_encoding", "'utf-8'"),
        ("TimeZone", "gmt"),
    ];
    let mut client = Wire::connect_with(stage.pooler.port(), &parameters);
    client.run("SELECT 1");
    let pid = client.value("SELECT pg_backend_pid()");
    for _ in 0..5 {
        client.run("SELECT 'the only statement'");
        let last = direct().value(&format!(
            "SELECT query FROM pg_stat_activity WHERE pid = {pid}"
        ));
        assert_eq!(last, "SELECT 'the only statement'");
    }
}

/// A setting that is no longer valid when it has to be carried to another server: the client hears
/// of it, and its statement does not run under other settings.
#[test]
fn a_setting_that_cannot_be_replayed() {
    direct()
        .run("DO $$ BEGIN CREATE ROLE short_lived; EXCEPTION WHEN duplicate_object THEN END $$");
    direct().run("DROP TABLE IF EXISTS run_as; CREATE TABLE run_as (who text)");
    let stage = Stage::new(1);
    let mut client = stage.client();
    client.run("SET ROLE short_lived");
    stage.client().run("SELECT 1");
    direct().run("DROP ROLE short_lived");
    client.try_send(Messages::new().query("INSERT INTO run_as SELECT current_user"));
    let messages = client.replies();
    assert!(tags(&messages).contains('E'), "{messages:?}");
    assert_eq!(direct().value("SELECT count(*) FROM run_as"), "0");
    stage.assert_clean();
}

/// What they run may set something, and no tag says so.
#[test]
fn settings_in_do_and_call_go_with_their_client() {
    let stage = Stage::new(1);
    direct().run(
        "CREATE OR REPLACE PROCEDURE sets() LANGUAGE plpgsql AS $$ BEGIN SET work_mem = '7MB'; END $$",
    );
    for sql in ["DO $$ BEGIN SET work_mem = '7MB'; END $$", "CALL sets()"] {
        let mut client = stage.client();
        client.run(sql);
        stage.assert_clean();
        assert_eq!(setting(&mut client, "work_mem"), "7MB", "{sql}");
    }
}

/// pgx (describe_exec) and PQprepare("") parse in one batch and run in another.
#[test]
fn an_unnamed_statement_leaves_nothing_behind_in_a_later_batch() {
    let stage = Stage::new(1);
    let mut client = stage.client();
    for sql in [
        "SELECT set_config('work_mem', '7MB', false)",
        "SELECT pg_advisory_lock(4711)",
    ] {
        client.send(Messages::new().parse("", sql).describe_statement("").sync());
        client.ready();
        stage.client().run("SELECT 1");
        client.send(Messages::new().bind("", "", &[]).execute("").sync());
        assert_eq!(tags(&client.ready()), "2DCZ");
        stage.assert_clean();
    }
    assert_eq!(setting(&mut client, "work_mem"), "7MB");
}

#[test]
fn a_function_call_leaves_nothing_behind() {
    let stage = Stage::new(1);
    // pg_advisory_lock(bigint), with a text argument.
    let call = [
        &2880_u32.to_be_bytes()[..],
        &[0, 0],
        &[0, 1],
        &[0, 0, 0, 2],
        b"77",
        &[0, 0],
    ]
    .concat();
    let mut client = stage.client();
    client.send(Messages::new().message(b'F', &call));
    assert_eq!(tags(&client.ready()), "VZ");
    stage.assert_clean();
}
