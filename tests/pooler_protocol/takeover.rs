//! Online restart: a new process takes over from the one that serves, and no client notices.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use test_support::wire::{Messages, PROTOCOL_3_0, Wire, cancel, sqlstate, startup, tags};
use test_support::{Pooler, PoolerConfig, Psql};

use crate::stage::{Stage, direct, eventually, is_running, server, start};

const LIMIT: Duration = Duration::from_secs(20);

/// Starts a query that runs for longer than any test.
fn sleep(wire: &mut Wire, name: &str) {
    let sql = format!("/* {name} */ SELECT pg_sleep(100)");
    wire.send(Messages::new().query(&sql));
    eventually("the query runs", || is_running(&sql));
}

fn assert_cancelled(wire: &mut Wire) {
    let messages = wire.ready();
    assert_eq!(sqlstate(&messages), "57014", "{messages:?}");
    assert_eq!(wire.value("SELECT 1"), "1");
}

fn assert_serves(pooler: &Pooler) {
    let mut client = Wire::connect(pooler.port(), "postgres", "postgres");
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn nobody_notices_three_in_a_row() {
    let mut stage = Stage::new(4);
    let port = stage.pooler.port();
    let rounds: [AtomicUsize; 4] = Default::default();
    let over = AtomicBool::new(false);
    let mut old = Vec::new();
    thread::scope(|scope| {
        for (index, rounds) in rounds.iter().enumerate() {
            let over = &over;
            scope.spawn(move || {
                // One connection for all, or, by the others, one for each query.
                let mut kept = Wire::connect(port, "postgres", "postgres");
                while !over.load(Ordering::SeqCst) {
                    if index > 0 {
                        kept = Wire::connect(port, "postgres", "postgres");
                    }
                    assert_eq!(kept.value("SELECT 1"), "1");
                    kept.transcript.clear();
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let all_go_on = || {
            let before: Vec<_> = rounds.iter().map(|r| r.load(Ordering::SeqCst)).collect();
            eventually("all go on", || {
                let mut pairs = rounds.iter().zip(&before);
                pairs.all(|(now, before)| now.load(Ordering::SeqCst) > before + 20)
            });
        };
        for _ in 0..3 {
            all_go_on();
            old.push(stage.pooler.take_over());
        }
        all_go_on();
        // The first has a client still; the others have none.
        for retired in &mut old[1..] {
            assert!(retired.wait(LIMIT).is_some_and(|status| status.success()));
        }
        assert!(old[0].exit_status().is_none());
        over.store(true, Ordering::SeqCst);
    });
    assert!(old[0].wait(LIMIT).is_some_and(|status| status.success()));
    stage.assert_clean();
}

#[test]
fn clients_stay_with_their_process() {
    let mut stage = Stage::new(2);
    let mut busy = stage.client();
    busy.run("BEGIN; CREATE TEMPORARY TABLE theirs (a int) ON COMMIT DROP");
    let mut holder = direct();
    holder.run("BEGIN; SELECT pg_advisory_xact_lock(7074)");
    let mut asks = stage.client();
    let sql = "SELECT pg_advisory_xact_lock(7074)";
    asks.send(Messages::new().query(sql));
    eventually("the query runs", || is_running(sql));
    let mut idle = stage.client();
    let mut old = stage.pooler.take_over();
    assert_serves(&stage.pooler);
    holder.run("COMMIT");
    assert_eq!(tags(&asks.ready()), "TDCZ");
    busy.run("INSERT INTO theirs VALUES (1); COMMIT");
    // Between transactions they are not disconnected either.
    busy.run("SELECT 1");
    idle.run("SELECT 1");
    assert!(old.exit_status().is_none());
    drop((busy, asks, idle));
    assert!(old.wait(LIMIT).is_some_and(|status| status.success()));
    assert_serves(&stage.pooler);
}

#[test]
fn clients_are_told_after_takeover_timeout() {
    let mut stage = Stage::with(2, |config| config.general("takeover_timeout = 300"));
    let mut idle = stage.client();
    let mut busy = stage.client();
    busy.run("BEGIN");
    let mut old = stage.pooler.take_over();
    let last = |wire: &mut Wire| sqlstate(&wire.end());
    assert_eq!(last(&mut idle), "57P01");
    busy.run("COMMIT");
    assert_eq!(last(&mut busy), "57P01");
    assert!(old.wait(LIMIT).is_some_and(|status| status.success()));
}

#[test]
fn a_signal_ends_what_is_left_of_the_old_one() {
    let mut stage = Stage::new(2);
    let mut idle = stage.client();
    let mut busy = stage.occupant();
    let mut old = stage.pooler.take_over();
    old.signal("TERM");
    assert_eq!(sqlstate(&idle.end()), "57P01");
    busy.run("SELECT 1");
    assert!(old.exit_status().is_none());
    old.signal("TERM");
    assert!(old.wait(LIMIT).is_some_and(|status| status.success()));
    busy.end();
    assert_serves(&stage.pooler);
}

#[test]
fn cancels_reach_the_process_of_the_client() {
    let mut stage = Stage::new(3);
    let mut first = stage.client();
    sleep(&mut first, "first process");
    let oldest = stage.pooler.take_over();
    let mut second = stage.client();
    sleep(&mut second, "second process");
    let _old = stage.pooler.take_over();
    let mut third = stage.client();
    sleep(&mut third, "third process");
    // A key that nobody has.
    cancel(stage.pooler.port(), &[0, 0, 0, 1, 2, 3, 4, 5]);
    first.cancel();
    assert_cancelled(&mut first);
    assert!(third.silent_for(Duration::from_millis(300)));
    second.cancel();
    assert_cancelled(&mut second);
    // One of them is killed, which concerns no others.
    oldest.signal("KILL");
    first.end();
    sleep(&mut second, "second process");
    cancel(stage.pooler.port(), first.key());
    second.cancel();
    assert_cancelled(&mut second);
    third.cancel();
    assert_cancelled(&mut third);
}

/// A new process as the one that serves sees it, which stops where the test wants.
struct Impostor {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Impostor {
    fn of(pooler: &Pooler) -> Self {
        let stream = UnixStream::connect(pooler.takeover_socket()).expect("the control socket");
        stream.set_read_timeout(Some(LIMIT)).expect("read timeout");
        let answers = BufReader::new(stream.try_clone().expect("a second handle"));
        Self { stream, answers }
    }

    /// The answer. (Descriptors that come with it are closed by the system.)
    fn say(&mut self, line: &str) -> String {
        self.stream.write_all(line.as_bytes()).expect("written");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an answer");
        answer
    }
}

#[test]
fn a_new_process_that_dies_is_forgotten() {
    let mut stage = Stage::new(2);
    let mut idle = stage.client();
    for lines in [
        &[][..],
        &["takeover 1\n"],
        &["takeover 1\n", "ready []\n"],
        &["takeover 1\n", "nonsense\n"],
        &["takeover 1000\n"],
    ] {
        let mut new = Impostor::of(&stage.pooler);
        let answers: Vec<_> = lines.iter().map(|line| new.say(line)).collect();
        let port = stage.pooler.port();
        if let [_, ready] = &answers[..]
            && ready == "yours\n"
        {
            // Nobody accepts now. Who connects all the same waits, and is served in the end.
            let mut wire = Wire::open(port);
            let parameters = [("user", "postgres"), ("database", "postgres")];
            wire.send(startup(PROTOCOL_3_0, &parameters));
            assert!(wire.silent_for(Duration::from_millis(200)));
            drop(new);
            wire.greeted();
        }
        assert_serves(&stage.pooler);
        idle.run("SELECT 1");
    }
    let log = stage.pooler.log();
    assert_eq!(
        log.matches("did not take over, going on").count(),
        5,
        "{log}"
    );
    let _old = stage.pooler.take_over();
    assert_serves(&stage.pooler);
    idle.run("SELECT 1");
}

#[test]
fn a_new_process_that_cannot_start_changes_nothing() {
    let mut stage = Stage::new(2);
    let mut idle = stage.client();
    let path = stage.pooler.config_path();
    let good = fs::read_to_string(&path).expect("the configuration");
    let occupied = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = occupied.local_addr().expect("an address").port();
    let metrics =
        format!("[general]\nenable_prometheus_exporter = true\nprometheus_exporter_port = {port}");
    // No file with rules for logins.
    let rules = format!("[general]\nhba_file = \"{}\"", path.display());
    for (line, reason) in [
        (
            "[general]\nshutdown_timeout = -1",
            "general.shutdown_timeout",
        ),
        (rules.as_str(), "pgcat.toml: line 1: "),
        (metrics.as_str(), "for prometheus_exporter_port"),
    ] {
        fs::write(&path, good.replace("[general]", line)).expect("written");
        stage.pooler.fail_to_take_over();
        let log = stage.pooler.log();
        assert!(log.contains(reason), "{log}");
        assert_serves(&stage.pooler);
        idle.run("SELECT 1");
    }
    fs::write(&path, good).expect("written");
    let _old = stage.pooler.take_over();
    assert_serves(&stage.pooler);
}

#[test]
fn without_an_old_process_a_new_one_just_starts() {
    let mut stage = Stage::new(2);
    let socket = stage.pooler.takeover_socket();
    let mode = fs::metadata(&socket).expect("the socket").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // Its sockets' files stay behind.
    stage.pooler.kill9();
    assert!(socket.exists());
    stage.pooler.restart_by_take_over();
    assert_serves(&stage.pooler);
    let _old = stage.pooler.take_over();
    assert_serves(&stage.pooler);
    assert!(stage.pooler.sigterm(LIMIT).is_some());
    assert!(!socket.exists(), "the file is left behind");
}

#[test]
fn while_the_old_one_shuts_down_a_new_one_may_take_over() {
    let mut stage = Stage::new(2);
    let mut busy = stage.occupant();
    stage.pooler.signal("TERM");
    let mut old = stage.pooler.take_over();
    assert_serves(&stage.pooler);
    busy.run("COMMIT");
    assert_eq!(sqlstate(&busy.end()), "57P01");
    assert!(old.wait(LIMIT).is_some_and(|status| status.success()));
    assert_serves(&stage.pooler);
}

#[test]
fn the_other_sockets_go_over_too() {
    let directory = std::env::temp_dir().join(format!("pgcat-takeover-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let metrics = test_support::free_port();
    let mut pooler = start(
        &PoolerConfig::new(server())
            .general(&format!("unix_socket_dir = \"{}\"", directory.display()))
            .general("enable_prometheus_exporter = true")
            .general(&format!("prometheus_exporter_port = {metrics}"))
            .user("postgres", 2),
    );
    let psql = Psql::new(
        &directory.display().to_string(),
        pooler.port(),
        "postgres",
        "postgres",
    );
    let control = directory.join(format!(".s.PGSQL.{}.takeover", pooler.port()));
    for _ in 0..2 {
        assert!(control.exists());
        let mut old = pooler.take_over();
        // Without clients it ends, and leaves the files alone.
        assert!(old.wait(LIMIT).is_some_and(|status| status.success()));
        assert_eq!(psql.run(&["SELECT 1"]), "1\n");
        assert!(std::net::TcpStream::connect(("127.0.0.1", metrics)).is_ok());
    }
    assert!(pooler.sigterm(LIMIT).is_some());
    assert!(!psql.try_run(&["SELECT 1"]).success);
    let left = fs::read_dir(&directory).expect("the directory").count();
    assert_eq!(left, 0, "a socket's file is left behind");
    let _ = fs::remove_dir(&directory);
}

/// systemd, as a service sees it.
struct Manager {
    socket: UnixDatagram,
    directory: PathBuf,
}

impl Manager {
    fn new() -> Self {
        let name = format!("pgcat-manager-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("a directory");
        let socket = UnixDatagram::bind(directory.join("notify")).expect("a socket");
        socket.set_read_timeout(Some(LIMIT)).expect("read timeout");
        Self { socket, directory }
    }

    fn start(&self, arguments: &[&str]) -> Service {
        let child = Command::new(env!("CARGO_BIN_EXE_pgcat"))
            .args(arguments)
            .arg(self.directory.join("pgcat.toml"))
            .env("NOTIFY_SOCKET", self.directory.join("notify"))
            .env("TMPDIR", &self.directory)
            .stdout(Stdio::null())
            .spawn()
            .expect("the pooler");
        Service(child)
    }

    fn heard(&self) -> String {
        let mut buffer = [0; 200];
        let length = self.socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}

/// Killed on drop.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn the_service_manager_is_told() {
    let manager = Manager::new();
    let config = PoolerConfig::new(server()).user("postgres", 2);
    let config = config.render(test_support::free_port());
    fs::write(manager.directory.join("pgcat.toml"), config).expect("written");
    let serves = |service: &Service| format!("READY=1\nMAINPID={}", service.0.id());
    let mut old = manager.start(&[]);
    assert_eq!(manager.heard(), serves(&old));
    let mut new = manager.start(&["--takeover"]);
    assert_eq!(manager.heard(), serves(&new));
    // That the old one ends is not the service's end.
    assert!(old.0.wait().expect("its end").success());
    let kill = Command::new("sh")
        .args(["-c", &format!("kill -s TERM {}", new.0.id())])
        .status();
    assert!(kill.is_ok_and(|status| status.success()));
    assert_eq!(manager.heard(), "STOPPING=1");
    assert!(new.0.wait().expect("its end").success());
}

/// Only root can play another user here.
#[test]
fn other_users_are_refused() {
    let directory = std::env::temp_dir().join(format!("pgcat-other-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let socket = directory.join("socket");
    let stage = Stage::with(2, |config| {
        config.general(&format!("takeover_socket = \"{}\"", socket.display()))
    });
    // As if the file's mode did not keep them away.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("a mode");
    let nobody = 65_534;
    let output = Command::new(env!("CARGO_BIN_EXE_pgcat"))
        .arg("--takeover")
        .arg(stage.pooler.config_path())
        .uid(nobody)
        .gid(nobody)
        .output();
    match output {
        Ok(output) => {
            assert_eq!(output.status.code(), Some(78));
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains("user 65534 may not take over"), "{text}");
        }
        Err(error) => eprintln!("not tried, as another user cannot be played: {error}"),
    }
    assert_serves(&stage.pooler);
    drop(stage);
    let _ = fs::remove_dir_all(&directory);
}
