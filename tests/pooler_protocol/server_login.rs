//! What a server says while the pooler logs in to it, and what of it clients are told.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use test_support::wire::{Messages, PROTOCOL_3_0, Wire, sqlstate, startup, tags};
use test_support::{Auth, Pooler, PoolerConfig, Postgres, Settings};

use crate::stage::{DONE, eventually, scripted, start};

const TRUST: &str = "auth_type = \"trust\"";

fn client(pooler: &Pooler) -> Wire {
    Wire::connect(pooler.port(), "app", "postgres")
}

fn is_served(pooler: &Pooler) -> bool {
    tags(&client(pooler).query("SELECT 1")).contains('D')
}

/// PgDog took the notice for an error, Odyssey for the end of the login.
#[test]
fn a_notice_of_the_servers_login_reaches_nobody() {
    let postgres = Postgres::start_with(17, &Settings::auth(Auth::Trust));
    let mut admin = Wire::connect(postgres.port(), "postgres", "postgres");
    admin.run(
        "CREATE ROLE app LOGIN;
         CREATE FUNCTION welcome() RETURNS event_trigger LANGUAGE plpgsql
           AS $$ BEGIN RAISE NOTICE 'welcome'; RAISE WARNING 'stranger'; END $$;
         CREATE EVENT TRIGGER welcome ON login EXECUTE FUNCTION welcome();
         ALTER EVENT TRIGGER welcome ENABLE ALWAYS",
    );
    let pooler = start(&PoolerConfig::new(&postgres).user_with("app", 2, TRUST));
    for _ in 0..3 {
        let mut wire = client(&pooler);
        assert!(!tags(&wire.greeting).contains('N'), "{:?}", wire.greeting);
        assert_eq!(tags(&wire.query("BEGIN")), "CZ");
        // The second server connection.
        assert_eq!(tags(&client(&pooler).query("SELECT 1")), "TDCZ");
    }
}

/// A ParameterStatus that no buffer holds: `search_path` is reported since PostgreSQL 18.
#[test]
fn a_login_with_large_messages() {
    let postgres = Postgres::start_with(18, &Settings::auth(Auth::Trust));
    let path: Vec<String> = (0..2000).map(|n| format!("schema_number_{n}")).collect();
    let path = path.join(", ");
    Wire::connect(postgres.port(), "postgres", "postgres").run(&format!(
        "CREATE ROLE app LOGIN; ALTER ROLE app SET search_path = {path}"
    ));
    let pooler = start(&PoolerConfig::new(&postgres).user_with("app", 2, TRUST));
    let expected = Wire::connect(postgres.port(), "app", "postgres").parameter("search_path");
    assert!(expected.as_ref().is_some_and(|path| path.len() > 30_000));
    for _ in 0..2 {
        let mut wire = client(&pooler);
        assert_eq!(wire.parameter("search_path"), expected);
        assert_eq!(Some(wire.value("SHOW search_path")), expected);
    }
}

/// A server that lets fewer connections in than the pool may have. Its clients queue for those there
/// are, instead of being told what is the server's affair with the pooler.
#[test]
fn a_server_without_room_is_waited_for() {
    let settings = Settings::auth(Auth::Trust)
        .parameter("max_connections", "8")
        .parameter("superuser_reserved_connections", "4");
    let postgres = Postgres::start_with(15, &settings);
    let mut admin = Wire::connect(postgres.port(), "postgres", "postgres");
    admin.run("CREATE ROLE app LOGIN");
    let start = |timeout: u32, threads: u32| {
        start(
            &PoolerConfig::new(&postgres)
                .user_with("app", 20, TRUST)
                .general("validate_config = false")
                .general(&format!(
                    "connect_timeout = {timeout}\nworker_threads = {threads}"
                )),
        )
    };
    let pooler = start(60_000, 2);
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let mut wire = client(&pooler);
            thread::spawn(move || {
                for _ in 0..20 {
                    wire.run("BEGIN");
                    wire.run("SELECT pg_sleep(0.002)");
                    wire.run("COMMIT");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("nobody is turned away");
    }
    drop(pooler);
    eventually("the server is free", || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        Wire::connect(postgres.port(), "postgres", "postgres").value(sql) == "0"
    });
    // Where the room is taken by others, the wait ends with the server's own words.
    // One thread, and nothing opened at start: the pooler has the one connection that its client uses.
    let pooler = start(700, 1);
    let mut early = client(&pooler);
    early.run("BEGIN");
    let others = RefCell::new(Vec::new());
    eventually("there is no room", || {
        let mut wire = Wire::open(postgres.port());
        let user = [("user", "app"), ("database", "postgres")];
        wire.send(startup(PROTOCOL_3_0, &user));
        let let_in = wire.try_greeted().is_ok();
        others.borrow_mut().extend(let_in.then_some(wire));
        // Those of before may be on their way out.
        !let_in && others.borrow().len() >= 2
    });
    let mut late = client(&pooler);
    let messages = late.query("SELECT 1");
    assert_eq!(tags(&messages), "EZ", "{messages:?}");
    assert_eq!(sqlstate(&messages), "58000");
    let detail = messages[0].field(b'D').unwrap_or_default();
    assert!(
        detail.contains("connection slots") && detail.contains("53300"),
        "{messages:?}"
    );
    // Room is found again, without a connection of the pool's becoming free.
    drop(others);
    eventually("there is room", || is_served(&pooler));
    early.run("COMMIT");
}

/// After a reload of the server's configuration, an `ALTER ROLE`, or an upgrade: what the pooler
/// remembers of its first login is not what a new one would be told.
#[test]
fn clients_are_greeted_with_the_servers_present_defaults() {
    let mut postgres = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    let set = |postgres: &Postgres, zone: &str| {
        let mut admin = Wire::connect(postgres.port(), "postgres", "postgres");
        admin.run(&format!("ALTER SYSTEM SET TimeZone = '{zone}'"));
        admin.run("SELECT pg_reload_conf()");
    };
    Wire::connect(postgres.port(), "postgres", "postgres").run("CREATE ROLE app LOGIN");
    set(&postgres, "Europe/Berlin");
    let pooler = start(&PoolerConfig::new(&postgres).user_with("app", 1, TRUST));
    let mut old = client(&pooler);
    old.run("SELECT 1");
    eventually("the first zone is told", || {
        client(&pooler).value("SHOW TimeZone") == "Europe/Berlin"
            && client(&pooler).parameter("TimeZone").as_deref() == Some("Europe/Berlin")
    });
    set(&postgres, "Asia/Tokyo");
    // The server connection hears of the reload with its next statement, and tells its client.
    eventually("the reload is told", || {
        client(&pooler).value("SHOW TimeZone") == "Asia/Tokyo"
    });
    let greeted = client(&pooler).parameter("TimeZone");
    assert_eq!(greeted.as_deref(), Some("Asia/Tokyo"));
    // A setting of one client is no default.
    old.run("SET TimeZone = 'America/Lima'");
    let greeted = client(&pooler).parameter("TimeZone");
    assert_eq!(greeted.as_deref(), Some("Asia/Tokyo"));
    // With new connections.
    set(&postgres, "Pacific/Honolulu");
    postgres.restart();
    eventually("the restarted server is found", || is_served(&pooler));
    let greeted = client(&pooler).parameter("TimeZone");
    assert_eq!(greeted.as_deref(), Some("Pacific/Honolulu"));
}

/// The server tells of a reload with its next answer, which may be one to the pooler's own question.
#[test]
fn a_reload_that_a_health_check_is_told_of() {
    let postgres = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    let mut admin = Wire::connect(postgres.port(), "postgres", "postgres");
    admin.run("CREATE ROLE app LOGIN");
    let config = PoolerConfig::new(&postgres)
        .user_with("app", 1, TRUST)
        .general("healthcheck_delay = 0");
    let pooler = start(&config);
    let mut early = client(&pooler);
    early.run("SELECT 1");
    admin.run("ALTER SYSTEM SET TimeZone = 'Asia/Tokyo'");
    admin.run("SELECT pg_reload_conf()");
    let reloaded = (0..1000).any(|_| {
        thread::sleep(Duration::from_millis(10));
        early.value("SHOW TimeZone") == "Asia/Tokyo"
    });
    assert!(reloaded);
    let greeted = client(&pooler).parameter("TimeZone");
    assert_eq!(greeted.as_deref(), Some("Asia/Tokyo"));
}

/// A restart as an administrator does it: the server first lets nobody in, then is not there, then is not ready. Clients
/// between transactions notice nothing but that it takes long.
#[test]
fn a_server_that_restarts_is_waited_for() {
    let mut postgres = Postgres::start_with(15, &Settings::auth(Auth::Trust));
    Wire::connect(postgres.port(), "postgres", "postgres").run("CREATE ROLE app LOGIN");
    let start = |timeout: u32| {
        start(
            &PoolerConfig::new(&postgres)
                .user_with("app", 1, TRUST)
                .general(&format!("connect_timeout = {timeout}\nworker_threads = 1")),
        )
    };
    let (patient, impatient) = (start(60_000), start(500));
    let (mut waits, mut gives_up) = (client(&patient), client(&impatient));
    waits.run("SELECT 1");
    gives_up.run("SELECT 1");
    let last = Wire::connect(postgres.port(), "postgres", "postgres");
    postgres.shut_down_when_left();
    eventually("the shutdown has begun", || {
        postgres.log().contains("received smart shutdown request")
    });
    for pooler in [&patient, &impatient] {
        pooler.psql("admin", "pgbouncer").run(&["RECONNECT"]);
    }
    let messages = gives_up.query("SELECT 1");
    assert_eq!(tags(&messages), "EZ", "{messages:?}");
    let detail = messages[0].field(b'D').unwrap_or_default();
    assert!(detail.contains("shutting down"), "{messages:?}");
    waits.send(Messages::new().query("SELECT 'still here'"));
    let refused = || {
        postgres
            .log()
            .matches("the database system is shutting down")
            .count()
    };
    let before = refused();
    eventually("it has been turned away", || refused() > before + 1);
    drop(last);
    postgres.restart();
    assert_eq!(tags(&waits.ready()), "TDCZ");
}

/// As PostgreSQL before 14, which tells of a reload at once, while nobody asks it anything.
fn tells_unasked(stream: &mut TcpStream, asked: &[u8]) {
    let _ = stream.write_all(DONE);
    // The pooler has questions of its own.
    if asked.windows(7).all(|w| w != b"'first'") {
        return;
    }
    thread::sleep(Duration::from_millis(100));
    let told = Messages::new().message(b'S', b"server_version\x0015.1\0");
    let _ = stream.write_all(told.as_ref());
}

/// The connection is kept, and clients are greeted with what it has said.
#[test]
fn a_parameter_that_an_idle_server_tells() {
    let pooler = scripted(tells_unasked);
    let connect = || Wire::connect(pooler.port(), "postgres", "postgres");
    let pooled = || {
        let servers = Wire::connect(pooler.port(), "admin", "pgbouncer").query("SHOW SERVERS");
        let server = servers.iter().find(|message| message.tag == b'D');
        // Its ends, and when it was connected.
        server.expect("a connection").row()[4..9].to_vec()
    };
    let version = || connect().parameter("server_version");
    let mut client = connect();
    assert_eq!(version().as_deref(), Some("15.0"));
    assert_eq!(tags(&client.query("SELECT 'first'")), "CZ");
    let before = pooled();
    eventually("the new version is told", || {
        version().as_deref() == Some("15.1")
    });
    assert_eq!(tags(&client.query("SELECT 'second'")), "CZ");
    assert_eq!(pooled(), before);
}
