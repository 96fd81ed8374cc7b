//! The pooler's binary, run as a process of its own.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::config::PoolerConfig;
use crate::connect;
use crate::postgres::tail;
use crate::process::{self, Workplace};
use crate::psql::Psql;

/// A running pooler. Stopped on drop.
pub struct Pooler {
    binary: PathBuf,
    workplace: Workplace,
    port: u16,
    child: Option<Child>,
}

/// A pooler that another one has taken over from. Killed on drop.
pub struct Retired(Child);

impl Retired {
    /// Sends a signal (`TERM`, `KILL` …) and returns at once.
    pub fn signal(&self, name: &str) {
        process::signal(self.0.id(), name);
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// Waits for its end; `None` if it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        process::wait_for_exit(&mut self.0, limit)
    }
}

impl Drop for Retired {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const START_LIMIT: Duration = Duration::from_secs(30);

impl Pooler {
    /// Starts `binary` (`env!("CARGO_BIN_EXE_pgcat")`) on a free port and waits until it serves.
    pub fn start(binary: impl AsRef<Path>, config: &PoolerConfig) -> Self {
        Self::start_text(binary, |port| config.render(port))
    }

    /// As [`Self::start`], with the whole text of the configuration for a given port.
    pub fn start_text(binary: impl AsRef<Path>, config: impl Fn(u16) -> String) -> Self {
        let mut pooler = Self {
            binary: binary.as_ref().to_owned(),
            workplace: Workplace::new("pooler"),
            port: 0,
            child: None,
        };
        for _ in 0..5 {
            pooler.port = process::free_port();
            fs::write(pooler.config_path(), config(pooler.port)).expect("pgcat.toml");
            if pooler.launch(&[]) {
                return pooler;
            }
            // Only a port that somebody else was faster to take is worth another try.
            if !pooler
                .log()
                .to_lowercase()
                .contains("address already in use")
            {
                break;
            }
        }
        panic!("the pooler does not start:\n{}", pooler.log());
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The configuration file, to be changed for a reload.
    pub fn config_path(&self) -> PathBuf {
        self.workplace.path().join("pgcat.toml")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the pooler runs").id()
    }

    /// What the pooler has logged so far, over all starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A client; the password is the user's name.
    pub async fn client(&self, user: &str, database: &str) -> Client {
        connect::connect(self.port, user, database).await
    }

    pub fn psql(&self, user: &str, database: &str) -> Psql {
        Psql::new("127.0.0.1", self.port, user, database)
    }

    pub fn kill9(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        process::signal(child.id(), "KILL");
        let _ = child.wait();
        self.workplace.unwatch();
    }

    /// SIGTERM; `None` if it still runs after `limit`.
    pub fn sigterm(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.stop_by("TERM", limit)
    }

    /// SIGINT; `None` if it still runs after `limit`.
    pub fn sigint(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.stop_by("INT", limit)
    }

    /// Sends a signal (`HUP`, `INT` …) and returns at once.
    pub fn signal(&self, name: &str) {
        process::signal(self.pid(), name);
    }

    /// Starts again on the same port and configuration, after it was killed or stopped.
    pub fn restart(&mut self) {
        self.kill9();
        let deadline = Instant::now() + START_LIMIT;
        while !self.launch(&[]) {
            assert!(
                Instant::now() < deadline,
                "the pooler does not start again:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts another process by `--takeover`, which is the pooler from now on.
    pub fn take_over(&mut self) -> Retired {
        let old = self.child.take().expect("the pooler runs");
        assert!(
            self.launch(&["--takeover"]),
            "the pooler is not taken over from:\n{}",
            self.log()
        );
        Retired(old)
    }

    /// Starts another process by `--takeover`, which must not come to serve; the pooler stays what it is.
    pub fn fail_to_take_over(&mut self) {
        let old = self.child.take().expect("the pooler runs");
        let taken = self.launch(&["--takeover"]);
        self.workplace.watch(old.id());
        if let Some(mut new) = self.child.replace(old) {
            let _ = new.kill();
            let _ = new.wait();
        }
        assert!(!taken, "the pooler is taken over from:\n{}", self.log());
    }

    /// Starts the pooler, after it was killed, by `--takeover`, with nobody to take over from.
    pub fn restart_by_take_over(&mut self) {
        assert!(
            self.launch(&["--takeover"]),
            "the pooler does not start:\n{}",
            self.log()
        );
    }

    /// The socket by which another process takes over.
    pub fn takeover_socket(&self) -> PathBuf {
        let user = fs::metadata("/proc/self").expect("/proc").uid();
        let name = format!("pgcat-{user}/127.0.0.1:{}.takeover", self.port);
        self.workplace.path().join(name)
    }

    /// How the pooler ended, if it ended by itself; `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    fn stop_by(&mut self, signal: &str, limit: Duration) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("the pooler runs");
        process::signal(child.id(), signal);
        let status = process::wait_for_exit(child, limit)?;
        self.child = None;
        self.workplace.unwatch();
        Some(status)
    }

    fn launch(&mut self, arguments: &[&str]) -> bool {
        let before = self.log().len();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("pooler.log");
        let mut child = process::daemon(&self.binary)
            .args(arguments)
            .arg(self.config_path())
            .env("NO_COLOR", "1")
            .env("TMPDIR", self.workplace.path())
            .env_remove("LOG_FORMAT")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.binary.display()));
        self.workplace.watch(child.id());
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if let Ok(Some(_)) = child.try_wait() {
                self.workplace.unwatch();
                return false;
            }
            let log = self.log();
            if log
                .get(before..)
                .is_some_and(|new| new.contains("Waiting for clients"))
                && TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            {
                self.child = Some(child);
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        process::signal(child.id(), "KILL");
        let _ = child.wait();
        self.workplace.unwatch();
        false
    }

    fn log_path(&self) -> PathBuf {
        self.workplace.path().join("pooler.log")
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.kill9();
        if thread::panicking() {
            eprintln!(
                "--- log of the pooler on port {}:\n{}",
                self.port,
                tail(&self.log(), 60)
            );
        }
    }
}
