//! A private PostgreSQL server.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::certificates::Certificate;
use crate::process::{self, Workplace};
use crate::psql::Psql;
use crate::{connect, install};

/// How the server authenticates TCP clients. The Unix socket is always `trust`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    Trust,
    /// Cleartext password.
    Password,
    Md5,
    Scram,
}

/// What a server may differ in.
#[derive(Debug, Clone)]
pub struct Settings {
    pub auth: Auth,
    /// `postgresql.conf` settings, after the defaults and so stronger.
    pub parameters: Vec<(String, String)>,
    /// `pg_hba.conf` for TCP, instead of what `auth` says.
    pub hba: Option<String>,
    pub tls: Option<Certificate>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            auth: Auth::Scram,
            parameters: Vec::new(),
            hba: None,
            tls: None,
        }
    }
}

impl Settings {
    pub fn auth(auth: Auth) -> Self {
        Self {
            auth,
            ..Self::default()
        }
    }

    /// Lines of `pg_hba.conf` for TCP, instead of what `auth` says.
    #[must_use]
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.to_owned());
        self
    }

    /// Offers TLS; takes clients' certificates of the same authority.
    #[must_use]
    pub fn tls(mut self, certificate: &Certificate) -> Self {
        self.tls = Some(certificate.clone());
        self
    }

    #[must_use]
    pub fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A server of its own: fresh `initdb` in a temporary directory, Unix socket and 127.0.0.1, without
/// fsync. Superuser `postgres`, password `postgres`. Stopped and removed on drop.
pub struct Postgres {
    major: u32,
    workplace: Workplace,
    port: u16,
    postmaster: Option<Child>,
}

/// A crashed server's shared memory is freed only when its last child is gone, and recovery takes
/// a moment on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(90);

impl Postgres {
    /// A server of this major with the default [`Settings`].
    pub fn start(major: u32) -> Self {
        Self::start_with(major, &Settings::default())
    }

    pub fn start_with(major: u32, settings: &Settings) -> Self {
        let mut server = Self {
            major,
            workplace: Workplace::new("pg"),
            port: 0,
            postmaster: None,
        };
        server.initdb(settings);
        for _ in 0..5 {
            server.port = process::free_port();
            if server.launch() {
                return server;
            }
        }
        panic!("PostgreSQL {major} does not start:\n{}", server.log());
    }

    /// A streaming standby of this server, caught up with its login roles and data so far. It trusts as
    /// this server does.
    ///
    /// # Panics
    /// If the copy cannot be made.
    pub fn standby(&self) -> Self {
        let mut standby = Self {
            major: self.major,
            workplace: Workplace::new("standby"),
            port: 0,
            postmaster: None,
        };
        standby.open_workplace();
        let copy = standby
            .program("pg_basebackup")
            .arg("--host")
            .arg(self.socket_directory())
            .args(["--port", &self.port.to_string(), "--username=postgres"])
            .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf"])
            .arg("--pgdata")
            .arg(standby.data_directory())
            .output()
            .expect("pg_basebackup runs");
        assert!(
            copy.status.success(),
            "pg_basebackup: {}",
            String::from_utf8_lossy(&copy.stderr)
        );
        let mut conf = File::options()
            .append(true)
            .open(standby.data_directory().join("postgresql.auto.conf"))
            .expect("postgresql.auto.conf");
        writeln!(
            conf,
            "unix_socket_directories = '{}'",
            standby.workplace.path().display()
        )
        .expect("postgresql.auto.conf");
        for _ in 0..5 {
            standby.port = process::free_port();
            if standby.launch() {
                return standby;
            }
        }
        panic!("the standby does not start:\n{}", standby.log());
    }

    /// Makes a standby a primary.
    ///
    /// # Panics
    /// If it does not become one.
    pub fn promote(&self) {
        let output = self
            .program("pg_ctl")
            .args(["promote", "--wait", "--pgdata"])
            .arg(self.data_directory())
            .output()
            .expect("pg_ctl runs");
        assert!(
            output.status.success(),
            "promote: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }

    /// Stops the postmaster and all its children in their tracks: connections stay open, new ones are
    /// accepted by the kernel, and nothing answers.
    pub fn freeze(&self) {
        self.signal_all("STOP");
    }

    /// Undoes [`Self::freeze`].
    pub fn thaw(&self) {
        self.signal_all("CONT");
    }

    fn signal_all(&self, signal: &str) {
        let postmaster = self.pid();
        process::signal(postmaster, signal);
        for child in process::children(postmaster) {
            process::signal(child, signal);
        }
    }

    pub fn major(&self) -> u32 {
        self.major
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the Unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.workplace.path()
    }

    pub fn data_directory(&self) -> PathBuf {
        self.workplace.path().join("data")
    }

    /// Process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.postmaster.as_ref().expect("the server runs").id()
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.workplace.path().join("server.log")).unwrap_or_default()
    }

    /// A client over TCP; the password is the user's name.
    pub async fn client(&self, user: &str, database: &str) -> Client {
        connect::connect(self.port, user, database).await
    }

    /// psql on a direct connection.
    pub fn psql(&self, user: &str, database: &str) -> Psql {
        Psql::new("127.0.0.1", self.port, user, database)
    }

    /// Kills the postmaster and all its children at once, as the loss of the machine would; what the
    /// server had written to its files stays.
    pub fn kill9(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else {
            return;
        };
        let children = process::children(postmaster.id());
        process::signal(postmaster.id(), "KILL");
        for child in children {
            process::signal(child, "KILL");
        }
        let _ = postmaster.wait();
        self.workplace.unwatch();
    }

    /// Begins a smart shutdown: it ends when the last client has left. Until then no other is let in (57P03).
    pub fn shut_down_when_left(&self) {
        process::signal(self.pid(), "TERM");
    }

    /// Fast shutdown: open transactions are rolled back.
    pub fn stop(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else {
            return;
        };
        process::signal(postmaster.id(), "INT");
        if process::wait_for_exit(&mut postmaster, Duration::from_secs(30)).is_none() {
            process::signal(postmaster.id(), "QUIT");
            let _ = postmaster.wait();
        }
        self.workplace.unwatch();
    }

    /// Starts again on the same port and data, after [`Self::kill9`] or [`Self::stop`]; a running
    /// server is stopped first.
    pub fn restart(&mut self) {
        self.stop();
        let deadline = Instant::now() + START_LIMIT;
        while !self.launch() {
            assert!(
                Instant::now() < deadline,
                "PostgreSQL does not start again:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Lets the user that servers run as into the workplace.
    fn open_workplace(&self) {
        fs::set_permissions(self.workplace.path(), fs::Permissions::from_mode(0o755))
            .expect("chmod");
        if let Some((user, group)) = process::unprivileged_user() {
            chown(self.workplace.path(), Some(user), Some(group)).expect("chown");
        }
    }

    fn initdb(&mut self, settings: &Settings) {
        self.open_workplace();
        let password_file = self.workplace.path().join("password");
        fs::write(&password_file, "postgres\n").expect("password file");
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o644)).expect("chmod");
        let initdb = self
            .program("initdb")
            .args([
                "--username=postgres",
                "--encoding=UTF8",
                "--no-sync",
                "--no-instructions",
            ])
            // The C locale is the only one every machine and every build of PostgreSQL has.
            .args(["--locale=C", "--auth-local=trust", "--auth-host"])
            .arg(if settings.auth == Auth::Md5 {
                "md5"
            } else {
                "scram-sha-256"
            })
            .arg(format!("--pwfile={}", password_file.display()))
            .arg(format!("--pgdata={}", self.data_directory().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("initdb starts");
        self.workplace.watch(initdb.id());
        let output = initdb.wait_with_output().expect("initdb runs");
        self.workplace.unwatch();
        assert!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );

        let method = match settings.auth {
            Auth::Trust => "trust",
            Auth::Password => "password",
            Auth::Md5 => "md5",
            Auth::Scram => "scram-sha-256",
        };
        let tcp = settings.hba.clone().unwrap_or_else(|| {
            format!(
                "host all all 127.0.0.1/32 {method}\nhost replication all 127.0.0.1/32 {method}\n"
            )
        });
        let hba = format!("local all all trust\nlocal replication all trust\n{tcp}");
        fs::write(self.data_directory().join("pg_hba.conf"), hba).expect("pg_hba.conf");

        let mut conf = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\n\
             max_connections = 200\nmax_prepared_transactions = 10\nlog_min_messages = warning\n\
             password_encryption = '{}'\n",
            self.workplace.path().display(),
            if settings.auth == Auth::Md5 {
                "md5"
            } else {
                "scram-sha-256"
            },
        );
        if let Some(certificate) = &settings.tls {
            self.install_certificate(certificate, process::unprivileged_user());
            conf.push_str("ssl = on\nssl_ca_file = 'ca.pem'\n");
        }
        for (name, value) in &settings.parameters {
            writeln!(conf, "{name} = '{value}'").expect("writing to a String");
        }
        // Read after postgresql.conf, where PostgreSQL 14's initdb has written defaults of its own.
        fs::write(self.data_directory().join("postgresql.auto.conf"), conf)
            .expect("postgresql.auto.conf");
    }

    /// Under PostgreSQL's own names, and as its user's.
    fn install_certificate(&self, certificate: &Certificate, owner: Option<(u32, u32)>) {
        let authority = certificate.certificate.with_file_name("ca.pem");
        for (from, to) in [
            (&certificate.certificate, "server.crt"),
            (&certificate.key, "server.key"),
            (&authority, "ca.pem"),
        ] {
            let to = self.data_directory().join(to);
            fs::copy(from, &to).expect("a copy");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("chmod");
            if let Some((user, group)) = owner {
                chown(&to, Some(user), Some(group)).expect("chown");
            }
        }
    }

    /// Whether the server accepts connections now; `false` if it gave up (port taken, old shared
    /// memory still in use).
    fn launch(&mut self) -> bool {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.workplace.path().join("server.log"));
        let log = log.expect("server.log");
        let mut postmaster = self
            .program("postgres")
            .arg("-D")
            .arg(self.data_directory())
            .args(["-p", &self.port.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn()
            .expect("postgres starts");
        self.workplace.watch(postmaster.id());
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if let Ok(Some(_)) = postmaster.try_wait() {
                return false;
            }
            if self.ready() {
                self.postmaster = Some(postmaster);
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        process::signal(postmaster.id(), "KILL");
        let _ = postmaster.wait();
        self.workplace.unwatch();
        false
    }

    /// The last line of postmaster.pid says `ready` once connections are accepted; before that the
    /// file may still be the one of a crashed predecessor, whose port nobody listens on.
    fn ready(&self) -> bool {
        let status =
            fs::read_to_string(self.data_directory().join("postmaster.pid")).unwrap_or_default();
        status.trim_end().ends_with("ready") && TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(install::bin_dir(self.major).join(name));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .current_dir(self.workplace.path());
        if let Some((user, group)) = process::unprivileged_user() {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            // A frozen one would not even notice.
            process::signal(postmaster.id(), "CONT");
            // Nobody will read this data again: no checkpoint, no waiting for clients.
            process::signal(postmaster.id(), "QUIT");
            if process::wait_for_exit(&mut postmaster, Duration::from_secs(10)).is_none() {
                process::signal(postmaster.id(), "KILL");
                let _ = postmaster.wait();
            }
        }
        if thread::panicking() {
            eprintln!(
                "--- log of PostgreSQL {} on port {}:\n{}",
                self.major,
                self.port,
                tail(&self.log(), 40)
            );
        }
    }
}

/// The last lines of a log, for the output of a failed test. The server logs whole statements, of
/// which the continuation lines (they begin with a tab) are left out.
pub(crate) fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().filter(|line| !line.starts_with('\t')).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
