//! What functions leave in a session that calls them: nothing in the text of the call tells.

use std::panic::{AssertUnwindSafe, catch_unwind};

use test_support::wire::{Messages, Wire, tags};
use test_support::{Auth, PoolerConfig, Postgres, Settings};

use crate::stage::{Stage, eventually, start};

/// A pooler with one server connection, of one thread, to a server that has been set up so.
fn stage(postgres: &Postgres, setup: &str) -> Stage {
    Wire::connect(postgres.port(), "postgres", "postgres").run(setup);
    let config = PoolerConfig::new(postgres)
        .user_with("postgres", 1, "auth_type = \"trust\"")
        .general("connect_timeout = 15000\nworker_threads = 1");
    Stage {
        pooler: start(&config),
    }
}

fn postgres(major: u32) -> Postgres {
    Postgres::start_with(major, &Settings::auth(Auth::Trust))
}

const FUNCTIONS: &str = r#"
    CREATE SCHEMA app;
    CREATE FUNCTION app.enter(tenant text) RETURNS void LANGUAGE sql
      AS $$ SELECT set_config('app.tenant', tenant, false) $$;
    CREATE FUNCTION app.log_in(who text) RETURNS void LANGUAGE plpgsql
      AS $$ BEGIN PERFORM app.enter(who); END $$;
    CREATE FUNCTION "Lock it"() RETURNS void LANGUAGE plpgsql
      AS $$ BEGIN PERFORM pg_advisory_lock(7); END $$;
    CREATE FUNCTION keep() RETURNS int LANGUAGE plpgsql
      AS $$ BEGIN CREATE TEMP TABLE IF NOT EXISTS kept (a int); RETURN 1; END $$;
    CREATE FUNCTION quick() RETURNS int LANGUAGE plpgsql
      AS $$ BEGIN SET work_mem = '1MB'; RETURN 1; END $$;
    CREATE FUNCTION path() RETURNS int LANGUAGE plpgsql
      AS $$ BEGIN EXECUTE 'SET search_path TO app'; RETURN 1; END $$;
    CREATE FUNCTION atomic() RETURNS text BEGIN ATOMIC SELECT set_config('work_mem', '2MB', false); END;
    CREATE FUNCTION forget() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DEALLOCATE ALL; END $$;
    CREATE PROCEDURE prepare() LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'PREPARE s AS SELECT 1'; PERFORM keep(); END $$;
    CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM keep(); RETURN new; END $$;
    CREATE TABLE touchy (a int, b int DEFAULT quick());
    CREATE TRIGGER touched BEFORE INSERT ON touchy FOR EACH ROW EXECUTE FUNCTION touched();
    CREATE VIEW seen AS SELECT quick() AS a;
    CREATE VIEW "seen again" AS SELECT * FROM seen;
    CREATE TABLE hidden (a int);
    INSERT INTO hidden VALUES (1);
    CREATE FUNCTION commented() RETURNS int LANGUAGE plpgsql
      AS $$ BEGIN
        -- By a SET behind a comment.
        SET work_mem = '3MB'; RETURN 1; END $$;
    CREATE FUNCTION quick_and_keep() RETURNS int LANGUAGE plpgsql
      AS $$ BEGIN PERFORM set_config('app.x', '1', false); RETURN keep(); END $$;
    CREATE FUNCTION keep_elsewhere() RETURNS int LANGUAGE plpgsql
      AS $$ BEGIN CREATE TABLE pg_temp.kept (a int); RETURN 1; END $$;
    CREATE FUNCTION touch() RETURNS int LANGUAGE plpgsql
      AS $$ BEGIN INSERT INTO touchy VALUES (1, 1); RETURN 1; END $$;
    CREATE FUNCTION "a ""b"" c"() RETURNS int LANGUAGE sql AS $$ SELECT keep() $$;
    CREATE TABLE parts (a int) PARTITION BY RANGE (a);
    CREATE TABLE part PARTITION OF parts DEFAULT;
    CREATE TRIGGER touched BEFORE INSERT ON part FOR EACH ROW EXECUTE FUNCTION touched();
    CREATE TABLE parents (a int PRIMARY KEY);
    CREATE TABLE children (a int REFERENCES parents ON DELETE CASCADE);
    INSERT INTO parents VALUES (1);
    INSERT INTO children VALUES (1);
    CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM keep(); RETURN old; END $$;
    CREATE TRIGGER gone BEFORE DELETE ON children FOR EACH ROW EXECUTE FUNCTION gone();
    CREATE TABLE checked (a int CHECK (quick() = a));
    CREATE FUNCTION add_quick(int, int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN quick(); END $$;
    CREATE AGGREGATE quickly (int) (SFUNC = add_quick, STYPE = int, INITCOND = '0');
    CREATE ROLE actor;
    GRANT ALL ON hidden TO actor;
    ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
    CREATE POLICY one ON hidden TO actor USING (a = keep());
"#;

#[test]
fn functions_leave_nothing_to_others() {
    let postgres = postgres(15);
    let stage = stage(&postgres, FUNCTIONS);
    let mut leaks = Vec::new();
    for sql in [
        "SELECT \"Lock it\"()",
        "SELECT keep()",
        "select public.KEEP ()",
        "SELECT quick()",
        "SELECT path()",
        "SELECT atomic()",
        "CALL prepare()",
        "INSERT INTO touchy VALUES (1, 1)",
        "WITH new AS (INSERT INTO touchy DEFAULT VALUES RETURNING a) SELECT a FROM new",
        "SELECT commented()",
        "SELECT quick_and_keep()",
        "SELECT keep_elsewhere()",
        "SELECT touch()",
        "SELECT \"a \"\"b\"\" c\"()",
        "INSERT INTO parts VALUES (1)",
        "DELETE FROM parents WHERE a = 1",
        "INSERT INTO checked VALUES (1)",
        "SELECT quickly(a) FROM generate_series(1, 2) a",
        "UPDATE pg_settings SET setting = '2048' WHERE name = 'work_mem'",
        "SELECT a FROM seen",
        "SELECT * FROM \"seen again\"",
        "BEGIN; SET LOCAL ROLE actor; SELECT * FROM hidden; COMMIT",
    ] {
        for extended in [false, true] {
            if extended && sql.contains(';') {
                continue;
            }
            let mut client = stage.client();
            let messages = if extended {
                client.send(Messages::new().statement(sql).sync());
                client.ready()
            } else {
                client.query(sql)
            };
            assert!(!tags(&messages).contains('E'), "{messages:?}");
            drop(client);
            if catch_unwind(AssertUnwindSafe(|| stage.assert_clean())).is_err() {
                leaks.push(sql);
            }
        }
    }
    assert!(leaks.is_empty(), "left behind: {leaks:#?}");
}

/// As applications with row level security have it.
#[test]
fn what_functions_set_goes_with_their_client() {
    let postgres = postgres(15);
    let stage = stage(&postgres, FUNCTIONS);
    const TENANT: &str = "SELECT nullif(current_setting('app.tenant', true), '')";
    let mut one = stage.client();
    let mut two = stage.client();
    one.run("SELECT app.enter('one')");
    two.send(Messages::new().statement("SELECT app.log_in('two')").sync());
    two.ready();
    let mut none = stage.client();
    for _ in 0..2 {
        assert_eq!(one.value(TENANT), "one");
        assert_eq!(none.query(TENANT)[1].row(), [None]);
        assert_eq!(two.value(TENANT), "two");
    }
    // By a statement prepared before.
    none.send(
        Messages::new()
            .parse("enter", "SELECT app.enter($1)")
            .sync(),
    );
    none.ready();
    none.send(
        Messages::new()
            .bind("", "enter", &[Some("three")])
            .execute("")
            .sync(),
    );
    none.ready();
    assert_eq!(one.value(TENANT), "one");
    assert_eq!(none.value(TENANT), "three");
}

#[test]
fn statements_that_a_function_has_deallocated_are_there_for_others() {
    let postgres = postgres(15);
    let stage = stage(&postgres, FUNCTIONS);
    let mut one = stage.client();
    let mut two = stage.client();
    for wire in [&mut one, &mut two] {
        wire.send(Messages::new().parse("s", "SELECT 'prepared'").sync());
        wire.ready();
    }
    one.run("SELECT forget()");
    two.send(Messages::new().bind("", "s", &[]).execute("").sync());
    assert_eq!(tags(&two.ready()), "2DCZ");
}

/// A ParameterStatus that no SET explains tells of what no source does.
#[test]
fn reported_settings_need_no_source() {
    let postgres = postgres(18);
    let stage = stage(
        &postgres,
        "CREATE FUNCTION hide() RETURNS void LANGUAGE plpgsql \
         AS $$ BEGIN EXECUTE 'S' || 'ET search_path = a'; EXECUTE 'S' || 'ET TimeZone = ''Asia/Tokyo'''; END $$",
    );
    let mut client = stage.client();
    client.run("SELECT hide()");
    stage.assert_clean();
    assert_eq!(client.value("SHOW search_path"), "a");
    assert_eq!(client.value("SHOW TimeZone"), "Asia/Tokyo");
}

#[test]
fn functions_that_come_later_are_found() {
    let postgres = postgres(15);
    let stage = stage(&postgres, "");
    let mut client = stage.client();
    client.run(
        "CREATE FUNCTION late() RETURNS int LANGUAGE plpgsql \
         AS $$ BEGIN SET work_mem = '1MB'; RETURN 1; END $$",
    );
    eventually("the new function is known", || client_is_alone(&stage));
    stage.assert_clean();
}

/// Whether what the function sets stays with the client that calls it.
fn client_is_alone(stage: &Stage) -> bool {
    let mut caller = stage.client();
    caller.run("SELECT late()");
    let mut other = stage.client();
    let alone = other.value("SHOW work_mem") != "1MB";
    other.run("DISCARD ALL");
    alone && caller.value("SHOW work_mem") == "1MB"
}

/// A statement prepared before its function does so is not trusted for ever.
#[test]
fn what_was_prepared_before_is_looked_at_again() {
    let postgres = postgres(15);
    let stage = stage(
        &postgres,
        "CREATE FUNCTION late() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    );
    let mut old = stage.client();
    old.send(Messages::new().parse("late", "SELECT late()").sync());
    old.ready();
    old.send(Messages::new().parse("", "SELECT late()").sync());
    old.ready();
    let mut other = stage.client();
    other.run(
        "CREATE OR REPLACE FUNCTION late() RETURNS int LANGUAGE plpgsql \
         AS $$ BEGIN SET work_mem = '1MB'; RETURN 1; END $$",
    );
    eventually("the new function is known", || client_is_alone(&stage));
    for name in ["", "late"] {
        old.send(Messages::new().bind("", name, &[]).execute("").sync());
        assert!(!tags(&old.ready()).contains('E'));
        assert_ne!(other.value("SHOW work_mem"), "1MB", "{name:?}");
        old.send(Messages::new().statement("DISCARD ALL").sync());
        old.ready();
        old.send(Messages::new().parse("late", "SELECT late()").sync());
        old.ready();
    }
}

/// The text of the EXECUTE says nothing of what the statement does.
#[test]
fn execute_does_what_the_statement_does() {
    let postgres = postgres(15);
    let stage = stage(&postgres, FUNCTIONS);
    for (prepared, value) in [
        ("SELECT set_config('work_mem', '1MB', false)", "1MB"),
        ("SELECT atomic()", "2MB"),
    ] {
        for extended in [false, true] {
            let mut client = stage.client();
            client.send(Messages::new().parse("s", prepared).sync());
            client.ready();
            if extended {
                client.send(Messages::new().statement("EXECUTE s").sync());
                assert!(!tags(&client.ready()).contains('E'));
            } else {
                client.run("EXECUTE s");
            }
            assert_eq!(stage.client().value("SHOW work_mem"), "4MB", "{prepared}");
            assert_eq!(client.value("SHOW work_mem"), value, "{prepared}");
        }
    }
}

/// As one that another role has made to annoy: its name is in everybody's statements.
#[test]
fn a_function_may_set_any_number_of_settings() {
    let postgres = postgres(15);
    let sets: String = (0..20_000)
        .map(|number| format!("PERFORM set_config('app.s{number}', '1', false);"))
        .collect();
    let setup = format!(
        "CREATE SCHEMA other; CREATE FUNCTION other.pg_class() RETURNS int LANGUAGE plpgsql \
         AS $$ BEGIN {sets} RETURN 1; END $$"
    );
    let stage = stage(&postgres, &setup);
    let mut client = stage.client();
    for _ in 0..2 {
        client.value("SELECT count(*) FROM pg_class");
    }
}
