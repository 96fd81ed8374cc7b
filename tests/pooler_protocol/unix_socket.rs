//! Clients on a Unix socket.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use test_support::{Pooler, PoolerConfig, Psql};

use crate::stage::{server, start};

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pgcat-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn pooler(&self, lines: &str) -> Pooler {
        let directory = self.0.display();
        start(
            &PoolerConfig::new(server())
                .general(&format!("unix_socket_dir = \"{directory}\""))
                .general(lines)
                .user("postgres", 2),
        )
    }

    fn psql(&self, pooler: &Pooler) -> Psql {
        let host = self.0.display().to_string();
        Psql::new(&host, pooler.port(), "postgres", "postgres")
    }

    fn socket(&self, pooler: &Pooler) -> PathBuf {
        self.0.join(format!(".s.PGSQL.{}", pooler.port()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const LARGE: &[&str] = &["SELECT repeat('x', 300000)"];

#[test]
fn clients_on_a_unix_socket() {
    let directory = Directory::new("unix");
    let mut pooler = directory.pooler("unix_socket_mode = \"0750\"");
    let psql = directory.psql(&pooler);
    assert_eq!(psql.run(LARGE).len(), 300_001);
    assert!(!psql.clone().password("wrong").try_run(LARGE).success);
    let socket = directory.socket(&pooler);
    let mode = fs::metadata(&socket)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o750);
    assert!(pooler.sigterm(Duration::from_secs(30)).is_some());
    assert!(!socket.exists(), "the file is left behind");
}

#[test]
fn a_socket_left_behind() {
    let directory = Directory::new("unix-stale");
    let mut pooler = directory.pooler("");
    pooler.kill9();
    assert!(directory.socket(&pooler).exists());
    pooler.restart();
    assert_eq!(directory.psql(&pooler).run(LARGE).len(), 300_001);
}

#[test]
fn a_mode_that_is_none() {
    let directory = Directory::new("unix-mode");
    for mode in ["\"rw\"", "\"7777\"", "511"] {
        let path = directory.0.join("pgcat.toml");
        let config = PoolerConfig::new(server())
            .general(&format!("unix_socket_mode = {mode}"))
            .user("postgres", 1);
        fs::write(&path, config.render(test_support::free_port())).expect("pgcat.toml");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_pgcat"))
            .arg(&path)
            .output()
            .expect("pgcat runs");
        assert_eq!(output.status.code(), Some(78));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("general.unix_socket_mode"), "{stderr}");
    }
}
