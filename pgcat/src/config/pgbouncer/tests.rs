use std::fs;

use super::super::model::{AuthType, Config, PoolMode, Role, TlsMode};
use super::*;
use settings::{ALL, Fate};

/// Files in a directory that is removed in the end.
struct Files(PathBuf);

impl Files {
    /// `pgbouncer.ini` with the sections and, at `FILES/users`, a user list.
    fn new(ini: &str) -> Self {
        let name = format!("pgcat-import-{:016x}", rand::random::<u64>());
        let files = Self(std::env::temp_dir().join(name));
        fs::create_dir(&files.0).expect("a directory");
        files.put("users", "\"app\" \"pw\"\n");
        files.put("pgbouncer.ini", ini);
        files
    }

    fn put(&self, name: &str, text: &str) {
        let text = text.replace("FILES", &self.0.display().to_string());
        fs::write(self.0.join(name), text).expect("a file");
    }

    fn import(&self, databases: &[&str], users: &[&str]) -> Result<Imported, String> {
        let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        import(Request {
            path: &self.0.join("pgbouncer.ini"),
            databases: &owned(databases),
            users: &owned(users),
        })
        .map_err(|error| {
            error
                .to_string()
                .replace(&self.0.display().to_string(), "FILES")
        })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The notes, without their file's directory, and the configuration.
fn result(imported: &Imported) -> (Config, Vec<String>) {
    let parsed = super::super::parse(&imported.text, Path::new("pgcat.toml"), &[]);
    let (config, warnings) = parsed.unwrap_or_else(|e| panic!("{e}\n{}", imported.text));
    let unknown: Vec<_> = warnings
        .iter()
        .filter(|warning| warning.message.contains("unknown key"))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let notes = imported.notes.iter().map(|note| note.message.clone());
    (config, notes.collect())
}

fn read(ini: &str) -> (Config, Vec<String>) {
    result(&Files::new(ini).import(&[], &[]).expect("an import"))
}

fn refused(ini: &str) -> String {
    Files::new(ini)
        .import(&[], &[])
        .expect_err("must be refused")
}

/// A configuration around lines of `[pgbouncer]` and of a database.
fn with(settings: &str, database: &str) -> String {
    format!(
        "[databases]\ndb = {database}\n[pgbouncer]\nauth_file = FILES/users\nlisten_addr = 127.0.0.1\n{settings}\n"
    )
}

#[test]
fn a_small_configuration_keeps_pgbouncers_defaults() {
    let (config, notes) = read(&with("", "host=server"));
    assert_eq!(notes, [""; 0]);
    let general = &config.general;
    assert_eq!((general.host.as_str(), general.port), ("127.0.0.1", 6432));
    assert_eq!(general.connect_timeout.as_secs(), 120);
    assert_eq!(general.tcp_user_timeout.as_secs(), 0);
    assert!(!general.server_round_robin && general.log_client_connections);
    assert_eq!(general.unix_socket_dir, Some(PathBuf::from("/tmp")));
    assert_eq!(general.unix_socket_mode, 0o777);
    assert_eq!(general.server_tls.mode, TlsMode::Prefer);
    let pool = &config.pools["db"];
    assert_eq!(pool.pool_mode, PoolMode::Session);
    let user = &pool.users[0];
    assert_eq!((user.username.as_str(), user.pool_size), ("app", 20));
    assert_eq!(user.password.as_deref(), Some("pw"));
    assert_eq!(user.auth_type, AuthType::Md5);
    let shard = &pool.shards[0];
    assert_eq!(shard.database, "db");
    assert_eq!(shard.servers[0].host, "server");
    assert_eq!(
        (shard.servers[0].port, shard.servers[0].role),
        (5432, Role::Primary)
    );
}

#[test]
fn a_setting_is_a_key_or_has_a_reason() {
    // Each by itself, at a value that is not its default.
    for known in ALL {
        let value = match known.name {
            "auth_type" => "scram-sha-256",
            "pool_mode" => "transaction",
            "client_tls_sslmode" => "allow",
            "server_tls_sslmode" => "require",
            "listen_addr" => "localhost",
            "auth_file" | "unix_socket_dir" => "FILES/users",
            name if name.contains("_tls_") && name.ends_with("file") => "FILES/users",
            _ if known.default.parse::<f64>().is_ok() => "7",
            _ => "value",
        };
        let needs = match known.name {
            name if name.starts_with("client_tls") => "client_tls_sslmode = verify-ca",
            "auth_query" => "auth_user = app",
            "unix_socket_mode" => "unix_socket_dir = /tmp",
            "auth_hba_file" => "auth_type = hba",
            _ => "",
        };
        let value = if known.name == "auth_hba_file" {
            "FILES/hba"
        } else {
            value
        };
        let ini = with(&format!("{needs}\n{} = {value}", known.name), "host=server");
        let files = Files::new(&ini);
        files.put("hba", "host all all all trust\n");
        files.put("pgbouncer.ini", &ini);
        let imported = files
            .import(&[], &[])
            .unwrap_or_else(|e| panic!("{}: {e}", known.name));
        let line = |start: &str| imported.text.lines().any(|line| line.starts_with(start));
        // Not only without effect.
        assert!(!imported.text.contains("has no effect"), "{}", known.name);
        let noted = imported
            .notes
            .iter()
            .any(|note| note.message.contains(known.name));
        match known.fate {
            Fate::Becomes("users") => assert!(line("username = \"app\"")),
            Fate::Becomes(key) => {
                let origin = format!("{}, line ", known.name);
                let has =
                    |line: &str| line.starts_with(&format!("{key} = ")) && line.contains(&origin);
                assert!(
                    imported.text.lines().any(has),
                    "{}\n{}",
                    known.name,
                    imported.text
                );
            }
            Fate::NotNeeded(_) => {
                assert!(
                    line(&format!("# {}: not needed: ", known.name)) && !noted,
                    "{}",
                    known.name
                );
            }
            Fate::Missing(_) => {
                assert!(
                    line(&format!("# NOTE: {} = ", known.name)) && noted,
                    "{}",
                    known.name
                );
            }
        }
    }
    let mut names: Vec<_> = ALL.iter().map(|known| known.name).collect();
    names.dedup();
    assert!(names.is_sorted() && names.len() == ALL.len());
}

#[test]
fn values_keep_their_meaning() {
    let settings = "pool_mode = statement\nserver_lifetime = 0\nquery_wait_timeout = 0\nquery_timeout = 1.5\n\
                    idle_transaction_timeout = 30\ntcp_keepidle = 0x1E\nunix_socket_mode = 0700\nlisten_addr = ::1, *\n\
                    dns_max_ttl = 0.5\nadmin_users = app, root\nmin_pool_size = 50\nmax_prepared_statements = 0";
    let (config, notes) = read(&with(settings, "host=server"));
    let general = &config.general;
    assert_eq!(general.server_lifetime.map(|t| t.as_millis()), Some(1));
    assert_eq!(general.connect_timeout.as_secs(), 24 * 3600);
    assert_eq!(
        general.timeouts.idle_in_transaction.map(|t| t.as_secs()),
        Some(30)
    );
    assert_eq!(general.tcp_keepalives_idle.as_secs(), 30);
    assert_eq!(general.unix_socket_mode, 0o700);
    assert_eq!(general.host, "0.0.0.0");
    assert_eq!(
        (general.dns_cache_enabled, general.dns_max_ttl.as_secs()),
        (true, 1)
    );
    assert_eq!(general.admin_users, ["app", "root"]);
    let user = &config.pools["db"].users[0];
    assert_eq!(user.pool_mode, PoolMode::Transaction);
    assert_eq!((user.pool_size, user.min_pool_size), (20, 20));
    assert_eq!(user.timeouts.statement.map(|t| t.as_millis()), Some(1500));
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("root of admin_users is no user of a pool"));
    assert!(notes[1].starts_with("there is no pool_mode statement"));
}

#[test]
fn databases_and_users_have_their_own_settings() {
    let files = Files::new(
        "[databases]\nsame = host=a\n\"odd \"\"name\"\"\" = host=h1,h2,h1 port=6000 dbname='it''s'\n\
         forced = host=/run/pg user=joe password='x y' pool_size=3 pool_mode=session connect_query='SELECT 1'\n\
         same = host=b pool_size=5 reserve_pool=0\n* = host=any\npgcat = host=x\n\
         [users]\napp = pool_mode=transaction pool_size=9\n[peers]\n1 = host=p\n\
         [pgbouncer]\nauth_file = FILES/users\nunix_socket_dir =\nlisten_addr = ::1\nauth_type = scram-sha-256\n",
    );
    files.put("users", "\"app\" \"pw\"\n\"hash\" \"md500000000000000000000000000000000\"\n\"none\" \"\"\n\"other\" \"o\"");
    let (config, notes) = result(&files.import(&["one", "same"], &["app"]).expect("an import"));
    assert_eq!(config.general.host, "[::1]");
    assert_eq!(config.general.unix_socket_dir, None);
    let names: Vec<_> = config.pools.keys().map(String::as_str).collect();
    assert_eq!(names, ["forced", "odd \"name\"", "one", "same"]);
    for pool in config.pools.values() {
        let users: Vec<_> = pool
            .users
            .iter()
            .map(|user| user.username.as_str())
            .collect();
        assert_eq!(users, ["app", "other"]);
        assert!(
            pool.users
                .iter()
                .all(|user| user.auth_type == AuthType::ScramSha256)
        );
        assert_eq!(
            (pool.users[0].pool_mode, pool.users[0].pool_size),
            (PoolMode::Transaction, 9)
        );
    }
    let odd = &config.pools["odd \"name\""].shards[0];
    let hosts: Vec<_> = odd
        .servers
        .iter()
        .map(|s| (s.host.as_str(), s.port, s.role))
        .collect();
    assert_eq!(hosts, [("h1", 6000, Role::Auto), ("h2", 6000, Role::Auto)]);
    assert_eq!(odd.database, "it's");
    let forced = &config.pools["forced"].users[1];
    assert_eq!(
        (
            forced.server_username.as_str(),
            forced.server_password.as_deref()
        ),
        ("joe", Some("x y"))
    );
    assert_eq!((forced.pool_size, forced.pool_mode), (3, PoolMode::Session));
    assert_eq!(config.pools["same"].shards[0].servers[0].host, "b");
    assert_eq!(config.pools["one"].shards[0].servers[0].host, "any");
    assert_eq!(config.pools["one"].shards[0].database, "one");
    let about = |text: &str| notes.iter().filter(|note| note.contains(text)).count();
    assert_eq!(about("databases.pgcat is left out"), 1);
    assert_eq!(about("connect_query = SELECT 1 has no counterpart"), 1);
    assert_eq!(about("pool_size holds for each user"), 1);
    assert_eq!(
        about("user hash is left out") + about("user none is left out"),
        2
    );
    assert_eq!(notes.len(), 5, "{notes:?}");
}

#[test]
fn limits_are_those_of_databases_and_users_or_of_all() {
    let ini = "[databases]\nplain = host=s\nown = host=s reserve_pool=3 max_db_client_connections=5 max_db_connections=7\n\
               [users]\napp = reserve_pool_size=4 client_idle_timeout=0 transaction_timeout=9 max_user_client_connections=6 max_user_connections=8\n\
               [pgbouncer]\nauth_file = FILES/users\nmax_client_conn = 1000\n\
               max_db_client_connections = 50\nmax_user_client_connections = 60\n\
               max_db_connections = 70\nmax_user_connections = 80\n\
               reserve_pool_size = 2\nreserve_pool_timeout = 0.5\nclient_idle_timeout = 11\n";
    let files = Files::new(ini);
    files.put("users", "\"app\" \"pw\"\n\"other\" \"pw\"\n");
    let (config, notes) = result(&files.import(&[], &[]).expect("an import"));
    assert_eq!(config.general.max_client_conn, Some(1000));
    let [plain, own] = ["plain", "own"].map(|name| &config.pools[name]);
    assert_eq!(plain.max_client_connections, Some(50));
    assert_eq!(own.max_client_connections, Some(5));
    let [app, other] = &plain.users[..] else {
        panic!("{:?}", plain.users);
    };
    assert_eq!(app.max_client_connections, Some(6));
    assert_eq!(other.max_client_connections, Some(60));
    let of_databases = (plain.max_db_connections, own.max_db_connections);
    assert_eq!(of_databases, (Some(70), Some(7)));
    let of_users = (app.max_user_connections, other.max_user_connections);
    assert_eq!(of_users, (Some(8), Some(80)));
    let seconds = |time: Option<std::time::Duration>| time.map(|time| time.as_secs());
    let [of_app, of_other] = [app, other].map(|user| {
        let times = user.timeouts;
        (seconds(times.transaction), seconds(times.idle))
    });
    assert_eq!((of_app, of_other), ((Some(9), None), (None, Some(11))));
    let reserves = [
        &plain.users[0],
        &plain.users[1],
        &own.users[0],
        &own.users[1],
    ];
    let sizes = reserves.map(|user| user.reserve_pool_size);
    assert_eq!(sizes, [4, 2, 4, 3]);
    assert_eq!(app.reserve_pool_timeout.map(|t| t.as_millis()), Some(500));
    assert!(
        notes.iter().all(|n| n.starts_with("listen_addr is empty")),
        "{notes:?}"
    );
}

#[test]
fn settings_without_effect_are_named() {
    let imported = Files::new(&with(
        "unix_socket_dir =\nunix_socket_mode = 0700\nauth_query = SELECT 1\nclient_tls_ca_file = /nowhere\n\
         default_pool_size = 3\nlisten_port = 1\nbogus = 1",
        "host=s pool_size=1",
    ))
    .import(&[], &[])
    .expect("an import");
    for name in [
        "unix_socket_mode, line 7",
        "auth_query, line 8",
        "client_tls_ca_file, line 9",
        "default_pool_size, line 10",
    ] {
        let line = format!("# {name}: has no effect beside the other settings");
        assert!(imported.text.contains(&line), "{}", imported.text);
    }
    assert_eq!(
        result(&imported).1,
        ["bogus: not a setting of PgBouncer 1.25"]
    );
}

#[test]
fn every_auth_type_is_as_strict_as_before() {
    let scram = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2E=$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
                 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let read = |settings: &str, users: &str| {
        let files = Files::new(&with(settings, "host=s user=joe"));
        files.put("users", users);
        files.put("hba", "hostssl all all all cert\n");
        let imported = files.import(&[], &[]).expect("an import");
        let config = result(&imported).0;
        let user = config.pools["db"].users[0].clone();
        (user.auth_type, user.password, config.general)
    };
    let secret = format!("\"app\" \"{scram}\"");
    assert_eq!(read("auth_type = md5", &secret).0, AuthType::ScramSha256);
    assert_eq!(read("auth_type = trust", "\"app\" \"\"").0, AuthType::Trust);
    assert_eq!(
        read("auth_type = plain", "\"app\" \"x\"").0,
        AuthType::Password
    );
    assert_eq!(read("auth_type = cert", "\"app\" \"\"").0, AuthType::Cert);
    assert_eq!(read("auth_type = any", "").0, AuthType::Trust);
    let (auth_type, password, general) =
        read("auth_type = hba\nauth_hba_file = FILES/hba", "\"app\" \"\"");
    assert_eq!((auth_type, password), (AuthType::Cert, None));
    assert!(general.hba_file.is_some_and(|path| path.ends_with("hba")));

    let ini = with("auth_type = hba\nauth_hba_file = FILES/hba", "host=s");
    let files = Files::new(&ini);
    files.put("pgbouncer.ini", &ini);
    files.put("hba", "host all all all md5\nlocal all all peer\n");
    let imported = files.import(&[], &[]).expect("an import");
    let note = imported.notes[0].to_string();
    assert!(
        note.contains(
            "/hba:2: authentication method \"peer\" is not supported; pgcat does not start"
        ),
        "{note}"
    );
}

#[test]
fn auth_query_has_its_user_and_password() {
    let files = Files::new(&format!(
        "{}[users]\nslow = query_timeout=7\n",
        with(
            "auth_user = app\nmin_pool_size = 2",
            "host=s\nother = host=s auth_user=second",
        )
    ));
    files.put("users", "\"app\" \"pw\"\n");
    let (config, notes) = result(&files.import(&[], &["known"]).expect("an import"));
    assert!(notes.is_empty(), "{notes:?}");
    let query = config.pools["db"]
        .auth_query
        .clone()
        .expect("an auth_query");
    assert_eq!(
        (query.user.as_str(), query.password.as_str()),
        ("app", "pw")
    );
    assert!(query.query.contains("rolvaliduntil") && query.query.contains("$1"));
    let query = config.pools["other"]
        .auth_query
        .clone()
        .expect("an auth_query");
    assert_eq!(
        (query.user.as_str(), query.password.as_str()),
        ("second", "")
    );
    let known = &config.pools["db"].users[1];
    assert_eq!((known.username.as_str(), &known.password), ("known", &None));
    let slow = &config.pools["db"].users[2];
    assert_eq!(slow.username, "slow");
    assert_eq!(slow.timeouts.statement.map(|time| time.as_secs()), Some(7));
    // Whoever else the query knows has a pool when he comes.
    let others = config.pools["db"].other_users.as_ref().expect("others");
    assert_eq!((others.pool_size, others.min_pool_size), (20, 0));
    assert_eq!(others.auth_type, AuthType::Md5);
    let (config, _) = read(&with("auth_user = app\nauth_type = trust", "host=s"));
    assert_eq!(config.pools["db"].other_users, None);
    let (config, _) = read("[databases]\ndb = host=s\n[pgbouncer]\nauth_user = app\n");
    assert!(config.pools["db"].users.is_empty());
}

#[test]
fn a_password_that_reads_as_a_variable_is_noted() {
    let files = Files::new(&with("", "host=s user=joe password=${HOME}"));
    let notes = files.import(&[], &[]).expect("an import").notes;
    let place = notes.iter().map(|note| (note.line, note.message.as_str()));
    let message = "a password like ${this} is a variable of the environment to pgcat: change it";
    assert_eq!(place.collect::<Vec<_>>(), [(2, message)]);
}

#[test]
fn included_files_are_read_in_place() {
    let ini =
        "[databases]\n%include FILES/databases.ini\nauth_file = FILES/users\n%include more.ini\n";
    let files = Files::new(ini);
    files.put("pgbouncer.ini", ini);
    files.put("databases.ini", "db = host=s\n[pgbouncer]\n");
    files.put("more.ini", "listen_addr = 10.0.0.1\nlisten_port = many\n");
    let error = files.import(&[], &[]).expect_err("a wrong port");
    assert_eq!(
        error,
        "FILES/more.ini:2: listen_port: expected an integer, found \"many\""
    );
    files.put("more.ini", "%include more.ini");
    let error = files.import(&[], &[]).expect_err("a circle");
    assert_eq!(
        error,
        "FILES/more.ini:1: Could not parse config file: files include each other too deeply"
    );
}

#[test]
fn what_is_wrong_is_named_with_file_line_and_key() {
    for (settings, database, expected) in [
        (
            "",
            "host=s bogus=1",
            "2: databases.db: unrecognized connection parameter: bogus",
        ),
        (
            "",
            "host='s",
            "2: databases.db: the quoted value of host does not end with a quote",
        ),
        (
            "",
            "host=s pool_size=0",
            "2: databases.db.pool_size: a pool of no connections serves nobody",
        ),
        (
            "",
            "host=s port=x",
            "2: databases.db.port: expected an integer, found \"x\"",
        ),
        (
            "",
            "host=@abstract",
            "2: databases.db.host: sockets in the abstract namespace are not supported",
        ),
        (
            "",
            "host=s pool_mode=none",
            "2: databases.db.pool_mode: expected session or transaction or statement, found \"none\"",
        ),
        (
            "auth_type = pam",
            "",
            "6: auth_type: pam has no counterpart in pgcat",
        ),
        (
            "auth_type = no",
            "",
            "6: auth_type: there is no auth_type \"no\"",
        ),
        (
            "auth_type = hba",
            "",
            "1: auth_hba_file: auth_type is hba, but auth_hba_file is not set",
        ),
        (
            "log_connections = yes",
            "",
            "6: log_connections: expected an integer, found \"yes\"",
        ),
        (
            "server_lifetime = -1",
            "",
            "6: server_lifetime: expected a number of seconds, found \"-1\"",
        ),
    ] {
        assert_eq!(
            refused(&with(settings, database)),
            format!("FILES/pgbouncer.ini:{expected}")
        );
    }
    let start = "FILES/pgbouncer.ini:2: ";
    let nobody = "no user is known who could log in; --user names those that are in neither auth_file nor the \
                  database's line";
    assert_eq!(
        refused("[databases]\ndb = host=s"),
        format!("{start}databases.db: {nobody}")
    );
    assert_eq!(
        refused("[databases]\n* = host=s\n[pgbouncer]\nauth_file = FILES/users"),
        format!(
            "{start}Could not parse config file: databases.*: a pool has a name: name the databases it serves with --database"
        )
    );
    assert!(
        refused("[databases]\ndb =\n[pgbouncer]\nauth_file = /nowhere")
            .starts_with("Could not open '/nowhere'")
    );
}
