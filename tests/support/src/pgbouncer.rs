//! PgBouncer, as the benchmark's measure. Debian's program, with a configuration of its own.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::certificates::Certificate;
use crate::install;
use crate::postgres::Postgres;
use crate::process::{self, Workplace};

/// A running PgBouncer that trusts everybody. Stopped on drop.
pub struct PgBouncer {
    workplace: Workplace,
    port: u16,
    child: Child,
}

impl PgBouncer {
    /// Starts on a free port, with the server's database `postgres` for its superuser. `pool_mode` is
    /// PgBouncer's (`transaction`, `session`).
    ///
    /// # Panics
    /// If it is not installed or does not start.
    pub fn start(server: &Postgres, pool_mode: &str, pool_size: u32) -> Self {
        Self::start_with(server, pool_mode, pool_size, None)
    }

    /// The same for clients with TLS only.
    ///
    /// # Panics
    /// As [`PgBouncer::start`].
    pub fn start_tls(
        server: &Postgres,
        pool_mode: &str,
        pool_size: u32,
        certificate: &Certificate,
    ) -> Self {
        Self::start_with(server, pool_mode, pool_size, Some(certificate))
    }

    fn start_with(
        server: &Postgres,
        pool_mode: &str,
        pool_size: u32,
        certificate: Option<&Certificate>,
    ) -> Self {
        let mut workplace = Workplace::new("pgbouncer");
        let directory = workplace.path().to_owned();
        let port = process::free_port();
        let tls = certificate.map_or(String::new(), |certificate| {
            let [file, key] = [("tls.pem", &certificate.certificate), ("tls.key", &certificate.key)]
                .map(|(name, path)| {
                    let copy = directory.join(name);
                    fs::copy(path, &copy).expect("a copy");
                    copy
                });
            format!(
                "client_tls_sslmode = require\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\n",
                file.display(),
                key.display()
            )
        });
        fs::write(directory.join("users"), "\"postgres\" \"postgres\"\n").expect("users");
        let ini = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} dbname=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nadmin_users = postgres\nauth_file = {}\npool_mode = {pool_mode}\n\
             default_pool_size = {pool_size}\nmax_client_conn = 10000\n{tls}\
             log_connections = 0\nlog_disconnections = 0\nlog_stats = 0\n",
            server.port(),
            directory.join("users").display(),
        );
        fs::write(directory.join("pgbouncer.ini"), ini).expect("pgbouncer.ini");
        let log = File::create(directory.join("pgbouncer.log")).expect("pgbouncer.log");
        let mut command = process::daemon(install::client_program("pgbouncer"));
        command
            .arg(directory.join("pgbouncer.ini"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // It refuses to run as root, as PostgreSQL does.
        if let Some((user, group)) = process::unprivileged_user() {
            chown(&directory, Some(user), Some(group)).expect("chown");
            for name in ["tls.pem", "tls.key"]
                .iter()
                .filter(|_| certificate.is_some())
            {
                chown(directory.join(name), Some(user), Some(group)).expect("chown");
            }
            command.uid(user).gid(group);
        }
        let child = command.spawn().expect("pgbouncer starts");
        workplace.watch(child.id());
        let mut started = Self {
            workplace,
            port,
            child,
        };
        started.wait();
        started
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.try_wait().expect("waiting for a child");
            if ended.is_some() || Instant::now() > deadline {
                let log = self.workplace.path().join("pgbouncer.log");
                panic!(
                    "pgbouncer does not start:\n{}",
                    fs::read_to_string(log).unwrap_or_default()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        process::signal(self.child.id(), "KILL");
        let _ = self.child.wait();
    }
}
