//! From PgBouncer by one command: `pgcat import`, `pgcat check`, and the pooler that starts with the result.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use test_support::{PgBouncer, Pooler, Postgres};

const PGCAT: &str = env!("CARGO_BIN_EXE_pgcat");

/// A directory that is removed in the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!("pgcat-import-{:016x}", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn put(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).expect("a file");
        path.display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Exit code, standard output and standard error.
fn pgcat(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(PGCAT);
    command.env_remove("CONFIG_FILE").current_dir(directory);
    let output = command.args(arguments).output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Name, value and default of each setting.
fn settings_of_pgbouncer(server: &Postgres) -> Vec<(String, String, String)> {
    let pgbouncer = PgBouncer::start(server, "transaction", 7);
    let psql = test_support::Psql::new("127.0.0.1", pgbouncer.port(), "postgres", "pgbouncer");
    let settings = psql.run(&["SHOW CONFIG"]);
    settings
        .lines()
        .map(|line| {
            let mut columns = line.split('|').map(str::to_owned);
            let mut next = || columns.next().expect("four columns");
            (next(), next(), next())
        })
        .collect()
}

#[test]
fn every_setting_of_the_installed_pgbouncer_is_known() {
    let directory = Directory::new();
    let users = directory.put("users", "\"postgres\" \"postgres\"\n");
    let server = Postgres::start(15);
    let settings = settings_of_pgbouncer(&server);
    assert!(settings.len() > 70, "{settings:?}");

    let mut ini = "[databases]\npostgres = host=localhost\n[pgbouncer]\n".to_owned();
    for (name, value, _) in &settings {
        let value = if name == "auth_file" { &users } else { value };
        ini.push_str(&format!("{name} = {value}\n"));
    }
    let path = directory.put("pgbouncer.ini", &ini);
    let (code, toml, stderr) = pgcat(&directory.0, &["import", &path]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!stderr.contains("not a setting"), "{stderr}");
    for (name, _, _) in &settings {
        let words = [
            format!("# {name}, line "),
            format!("# {name}: "),
            format!("# NOTE: {name} = "),
        ];
        assert!(
            words.iter().any(|words| toml.contains(words.as_str())),
            "{name}:\n{toml}"
        );
    }
    for line in ["pool_size = 7 ", "pool_mode = \"transaction\" "] {
        assert!(toml.contains(line), "{toml}");
    }
}

#[test]
fn defaults_are_those_of_the_installed_pgbouncer() {
    let directory = Directory::new();
    let server = Postgres::start(15);
    let settings = settings_of_pgbouncer(&server);
    // What a file that sets nothing becomes, and one that sets everything to its default.
    let users = directory.put("users", "\"postgres\" \"postgres\"\n");
    let start =
        format!("[databases]\npostgres = host=localhost\n[pgbouncer]\nauth_file = {users}\n");
    let mut full = start.clone();
    for (name, _, default) in &settings {
        // As SHOW CONFIG has it, it is no default of version 1.20 and later.
        if name != "server_tls_sslmode" && name != "auth_file" && !default.is_empty() {
            full.push_str(&format!("{name} = {default}\n"));
        }
    }
    let [plain, full] = [start, full].map(|ini| {
        let path = directory.put("pgbouncer.ini", &ini);
        let (code, toml, stderr) = pgcat(&directory.0, &["import", &path]);
        assert_eq!(code, Some(0), "{stderr}");
        let lines = toml.lines().map(|line| line.split("  #").next());
        let lines: Vec<_> = lines.flatten().filter(|l| !l.starts_with('#')).collect();
        lines.join("\n").trim().to_owned()
    });
    assert_eq!(plain, full);
}

#[test]
fn a_deployment_moves_over() {
    let server = Postgres::start(15);
    let direct = server.psql("postgres", "postgres");
    direct.run(&[
        "CREATE ROLE app LOGIN PASSWORD 'it''s \"secret\"'",
        "CREATE ROLE reports LOGIN PASSWORD 'reports'",
        "CREATE ROLE hashed LOGIN PASSWORD 'hashed'",
        "CREATE DATABASE shop",
    ]);
    let secret = direct.run(&["SELECT rolpassword FROM pg_authid WHERE rolname = 'hashed'"]);
    let directory = Directory::new();
    directory.put(
        "userlist.txt",
        &format!(
            "; users\n\"app\" \"it's \"\"secret\"\"\"\n\"hashed\" \"{}\"\n\"reports\" \"reports\"\n",
            secret.trim()
        ),
    );
    directory.put(
        "databases.ini",
        &format!(
            "shop = host=127.0.0.1 port={port} pool_size=2\n\
             reporting = host=127.0.0.1 port={port} dbname=shop user=reports password='reports'\n\
             * = host=127.0.0.1 port={port}\n",
            port = server.port()
        ),
    );
    let ini = |port: u16| {
        format!(
            "[databases]\n%include databases.ini\n[users]\nreports = pool_mode=session\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {directory}\n\
             auth_type = scram-sha-256\nauth_file = userlist.txt\nadmin_users = app\nstats_users = reports\n\
             pool_mode = transaction\ndefault_pool_size = 3\nserver_tls_sslmode = disable\n\
             ignore_startup_parameters = extra_float_digits\nlogfile = /var/log/pgbouncer.log\n\
             max_client_conn = 500\n",
            directory = directory.0.display()
        )
    };
    let pooler = Pooler::start_text(PGCAT, |port| {
        let path = directory.put("pgbouncer.ini", &ini(port));
        let output = directory.0.join("pgcat.toml");
        let _ = fs::remove_file(&output);
        let arguments = [
            "import",
            &path,
            "-o",
            "pgcat.toml",
            "--database",
            "postgres",
        ];
        let (code, stdout, stderr) = pgcat(&directory.0, &arguments);
        assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
        let mode = fs::metadata(&output).expect("the result").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let (code, stdout, stderr) = pgcat(&directory.0, &["check"]);
        assert_eq!(
            (code, stdout.as_str()),
            (Some(0), "pgcat.toml is valid\n"),
            "{stderr}"
        );
        // Nobody's configuration is overwritten.
        let (code, _, stderr) = pgcat(&directory.0, &arguments);
        assert_eq!(
            (code, stderr.as_str()),
            (Some(78), "pgcat: pgcat.toml: File exists (os error 17)\n")
        );
        fs::read_to_string(output).expect("the result")
    });
    let who = "SELECT current_user, current_database()";
    let run = |user: &str, password: &str, database: &str| {
        let psql = pooler.psql(user, database).password(password);
        psql.run(&[who]).trim().to_owned()
    };
    assert_eq!(run("app", "it's \"secret\"", "shop"), "app|shop");
    assert_eq!(run("hashed", "hashed", "shop"), "hashed|shop");
    assert_eq!(run("app", "it's \"secret\"", "reporting"), "reports|shop");
    assert_eq!(run("reports", "reports", "postgres"), "reports|postgres");
    let refused = pooler.psql("app", "shop").password("wrong").try_run(&[who]);
    assert!(!refused.success);
    let socket = directory.0.display().to_string();
    let local = test_support::Psql::new(&socket, pooler.port(), "reports", "shop");
    assert_eq!(local.run(&[who]).trim(), "reports|shop");

    let admin = pooler.psql("app", "pgbouncer").password("it's \"secret\"");
    let pools = admin.run(&["SHOW POOLS"]);
    assert!(
        pools
            .lines()
            .any(|line| line.starts_with("shop|app|") && line.contains("transaction"))
    );
    assert!(
        pools
            .lines()
            .any(|line| line.starts_with("shop|reports|") && line.contains("session"))
    );
    let stats = pooler.psql("reports", "pgbouncer");
    assert!(stats.try_run(&["SHOW STATS"]).success && !stats.try_run(&["PAUSE"]).success);
}

#[test]
fn what_is_different_is_said() {
    let directory = Directory::new();
    let users = directory.put("users", "\"app\" \"app\"\n");
    let ini = format!(
        "[databases]\ndb = host=localhost connect_query='SELECT 1'\n\
         [pgbouncer]\nlisten_addr = *\nauth_file = {users}\nserver_check_delay = 5\nquery_timeout = 3\n\
         query_wait_notify = 60\nlogfile = /var/log/pgbouncer.log\n"
    );
    let path = directory.put("pgbouncer.ini", &ini);
    let (code, toml, stderr) = pgcat(&directory.0, &["import", &path]);
    assert_eq!(code, Some(0));
    assert!(toml.contains("\nhealthcheck_delay = 5000  # server_check_delay, line 6\n"));
    for note in [
        ":2: databases.db: connect_query = SELECT 1 has no counterpart: nothing is run on new connections",
        ":8: query_wait_notify = 60 has no counterpart: clients that wait are not told so",
    ] {
        assert!(stderr.contains(&format!("{path}{note}\n")), "{stderr}");
    }
    // What nobody misses is only in the file.
    assert!(!stderr.contains("logfile"));
    assert!(toml.contains("# logfile: not needed: "));
}

#[test]
fn what_is_wrong_ends_with_78_and_its_line() {
    let directory = Directory::new();
    let users = directory.put("users", "\"app\" \"app\n");
    let ini = format!("[databases]\ndb = host=localhost\n[pgbouncer]\nauth_file = {users}\n");
    let path = directory.put("pgbouncer.ini", &ini);
    let (code, stdout, stderr) = pgcat(&directory.0, &["import", &path]);
    assert_eq!((code, stdout.as_str()), (Some(78), ""));
    assert!(
        stderr.starts_with(&format!("pgcat: {users}:1: ")),
        "{stderr}"
    );

    // Certificates that are not here: the result is written, and what is wrong with it said.
    directory.put("users", "\"app\" \"app\"\n");
    let tls = "client_tls_sslmode = require\nclient_tls_cert_file = /nowhere.crt\nclient_tls_key_file = /nowhere.key\n";
    directory.put("pgbouncer.ini", &format!("{ini}{tls}"));
    let (code, toml, stderr) = pgcat(&directory.0, &["import", &path]);
    assert_eq!(code, Some(78));
    assert!(toml.contains("\ntls_certificate = \"/nowhere.crt\""));
    let message =
        "general.tls_certificate: tls_certificate is incorrectly configured: No such file";
    assert!(stderr.contains(message), "{stderr}");

    let rules = directory.put("rules", "host all all all trust\nlocal all all peer\n");
    let text = "[general]\nhba_file = \"RULES\"\n[pools.db.users.0]\nusername = \"app\"\npassword = \"app\"\n\
                pool_size = 1\n[pools.db.shards.0]\nservers = [[\"h\", 5432, \"primary\"]]\ndatabase = \"db\"\n";
    let file = directory.put("pgcat.toml", &text.replace("RULES", &rules));
    let (code, stdout, stderr) = pgcat(&directory.0, &["check", &file]);
    assert_eq!((code, stdout.as_str()), (Some(78), ""));
    let message = "line 2: authentication method \"peer\" is not supported\n";
    assert_eq!(stderr, format!("pgcat: {rules}: {message}"));
}
