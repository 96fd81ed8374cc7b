//! The typed configuration: what the rest of the pooler reads.
//!
//! Built only by [`super::parse`], so every value here has been validated: pools have users and
//! shards, numbers are in range, zero timeouts that would mean "never" have become `None`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A whole validated `pgcat.toml`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file this was read from.
    pub path: PathBuf,
    pub general: General,
    /// Global `[plugins]`: one raw table per plugin, for the plugin itself to read.
    pub plugins: PluginTables,
    /// By database name, as clients name it.
    pub pools: BTreeMap<String, Pool>,
}

/// Plugin sections by plugin name, unparsed: the pooler does not know its plugins' settings.
pub type PluginTables = BTreeMap<String, toml::Table>;

/// `[general]`.
#[derive(Debug, Clone, PartialEq)]
pub struct General {
    pub host: String,
    pub port: u16,
    pub enable_prometheus_exporter: bool,
    pub prometheus_exporter_port: u16,
    /// Longest wait for a server connection, queueing and connecting included.
    pub connect_timeout: Duration,
    pub idle_timeout: Option<Duration>,
    pub server_lifetime: Option<Duration>,
    pub tcp_keepalives_idle: Duration,
    pub tcp_keepalives_count: u32,
    pub tcp_keepalives_interval: Duration,
    pub tcp_user_timeout: Duration,
    pub log_client_connections: bool,
    pub log_client_disconnections: bool,
    pub shutdown_timeout: Duration,
    /// Clients that take longer to log in are disconnected; PgBouncer's `client_login_timeout`.
    pub client_login_timeout: Duration,
    /// Clients that may be logging in at once; `None`: any number.
    pub max_client_logins: Option<usize>,
    /// Clients there may be at once, those of the admin databases not counted; `None`: any number.
    pub max_client_conn: Option<usize>,
    /// Where the Unix socket for clients is; `None`: there is none.
    pub unix_socket_dir: Option<PathBuf>,
    /// Rules for logins, in place of users' `auth_type`.
    pub hba_file: Option<PathBuf>,
    /// File mode of the Unix socket.
    pub unix_socket_mode: u32,
    /// Where a new process asks for the listening sockets.
    pub takeover_socket: TakeoverSocket,
    /// How long clients may stay after another process has taken over; `None`: any time.
    pub takeover_timeout: Option<Duration>,
    pub healthcheck_timeout: Duration,
    pub healthcheck_delay: Duration,
    pub ban_time: Duration,
    pub timeouts: Timeouts,
    /// Idle server connections are reused oldest first (`true`) or newest first.
    pub server_round_robin: bool,
    pub worker_threads: usize,
    /// Re-read the file this often and reload when it changed.
    pub autoreload: Option<Duration>,
    /// TLS towards clients; `None`: they get none.
    pub client_tls: Option<ClientTls>,
    pub server_tls: ServerTls,
    /// Empty where no admin login is configured: there is no admin database then.
    pub admin_username: String,
    pub admin_password: String,
    pub admin_auth_type: AuthType,
    /// Users of pools who may also use the admin databases (PgBouncer's key).
    pub admin_users: Vec<String>,
    /// Users of pools who may look at the admin databases (PgBouncer's key).
    pub stats_users: Vec<String>,
    /// Connect to every server at start, and log what fails.
    pub validate_config: bool,
    pub dns_cache_enabled: bool,
    pub dns_max_ttl: Duration,
    pub auth_query: Option<AuthQuery>,
}

/// Where a new process asks for the listening sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakeoverSocket {
    /// By the Unix socket for clients, else in a directory of the user's own.
    Default,
    At(PathBuf),
    /// No process may take over.
    Off,
}

/// How much TLS is insisted on: libpq's `sslmode`, with PgBouncer's meaning where it is the pooler that
/// is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// TLS towards clients. The files are read when the pooler starts, and on a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    pub mode: TlsMode,
    pub identity: TlsIdentity,
    /// Who signs clients' certificates. Present if the mode verifies them.
    pub ca: Option<PathBuf>,
}

impl General {
    /// Who may use the admin databases, if anybody may.
    pub fn admin(&self) -> Option<User> {
        (!self.admin_username.is_empty()).then(|| User {
            username: self.admin_username.clone(),
            password: Some(self.admin_password.clone()),
            auth_type: self.admin_auth_type,
            server_username: String::new(),
            server_password: None,
            pool_size: 0,
            min_pool_size: 0,
            pool_mode: PoolMode::Session,
            server_lifetime: None,
            idle_timeout: None,
            connect_timeout: self.connect_timeout,
            timeouts: Timeouts::default(),
            max_client_connections: None,
            max_user_connections: None,
            reserve_pool_size: 0,
            reserve_pool_timeout: None,
        })
    }
}

/// How long clients may take; `None`: as long as they like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// For a statement, or a batch of the extended protocol. It is cancelled.
    pub statement: Option<Duration>,
    /// For a transaction. The client is disconnected.
    pub transaction: Option<Duration>,
    /// Between the statements of a transaction. It is rolled back.
    pub idle_in_transaction: Option<Duration>,
    /// Between transactions. The client is disconnected.
    pub idle: Option<Duration>,
}

/// TLS towards servers; on Unix sockets there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// As PgBouncer has it, `Allow` is `Prefer`.
    pub mode: TlsMode,
    /// Whom a verifying mode trusts; `None`: the system's authorities.
    pub ca: Option<PathBuf>,
    /// What the pooler shows to servers that ask.
    pub identity: Option<TlsIdentity>,
}

/// A certificate, with those between it and the authority, and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsIdentity {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthQuery {
    pub query: String,
    pub user: String,
    pub password: String,
}

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthType {
    /// By a certificate for the user, over TLS.
    Cert,
    Md5,
    /// A password in the clear, over TLS or a Unix socket.
    Password,
    ScramSha256,
    Trust,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolMode {
    Session,
    Transaction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadBalancing {
    LeastOutstandingConnections,
    Random,
}

/// The role of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Whatever the server says it is, asked now and then.
    Auto,
    /// Accepted for PgCat's sake; such a server serves nobody.
    Mirror,
    Primary,
    Replica,
}

/// The role a statement asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedRole {
    Any,
    Primary,
    Replica,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultShard {
    Random,
    RandomHealthy,
    Shard(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardingFunction {
    PgBigintHash,
    Sha1,
}

/// `[pools.<name>]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub pool_mode: PoolMode,
    pub load_balancing_mode: LoadBalancing,
    pub checkout_failure_limit: Option<u64>,
    pub default_role: WantedRole,
    pub query_parser_enabled: bool,
    pub query_parser_max_length: Option<usize>,
    pub query_parser_read_write_splitting: bool,
    pub primary_reads_enabled: bool,
    /// Functions that change nothing although they are volatile, by name.
    pub read_only_functions: Vec<String>,
    /// Whether the primary serves what is meant for replicas while none of them is well.
    pub replica_to_primary_failover_enabled: bool,
    /// How long replicas may be behind and still serve reads; `None`: any time.
    pub max_replica_lag: Option<Duration>,
    /// Whether replicas serve a client only what it has itself written before.
    pub read_your_writes: bool,
    pub sharding_function: ShardingFunction,
    pub automatic_sharding_key: Option<String>,
    pub sharding_key_regex: Option<String>,
    pub shard_id_regex: Option<String>,
    pub regex_search_limit: usize,
    pub default_shard: DefaultShard,
    pub auth_query: Option<AuthQuery>,
    /// Clients of all users together; `None`: any number.
    pub max_client_connections: Option<usize>,
    /// Server connections of all users together, to all servers; `None`: any number.
    pub max_db_connections: Option<usize>,
    pub log_client_parameter_status_changes: bool,
    /// Prepared statements kept per server connection. PgCat's 0 means "off", which breaks drivers in
    /// transaction mode; here 0 and absent are [`Pool::DEFAULT_PREPARED_STATEMENTS`].
    pub prepared_statements_cache_size: usize,
    pub db_activity_based_routing: bool,
    pub db_activity_init_delay: Duration,
    pub db_activity_ttl: Duration,
    pub table_mutation_cache_ms_ttl: Duration,
    /// The pool's own plugin tables where it has `[pools.<name>.plugins]` (they replace the global
    /// ones completely, as in PgCat), else the global ones.
    pub plugins: PluginTables,
    /// In shard order: key "0" first.
    pub shards: Vec<Shard>,
    /// In the order of the file; user names are unique.
    pub users: Vec<User>,
    /// What holds for users whom only `auth_query` knows, if they are let in: the user `*`.
    pub other_users: Option<User>,
}

impl User {
    /// The name in the configuration that stands for all users who have none there.
    pub const OTHERS: &str = "*";

    /// Of what holds for the others, what holds for one of them.
    pub fn named(&self, name: &str) -> Self {
        let mut user = self.clone();
        if user.server_username == Self::OTHERS {
            name.clone_into(&mut user.server_username);
        }
        name.clone_into(&mut user.username);
        user
    }
}

impl Pool {
    pub const DEFAULT_PREPARED_STATEMENTS: usize = 500;
}

#[derive(Debug, Clone, PartialEq)]
pub struct Shard {
    pub database: String,
    pub servers: Vec<ServerAddress>,
    pub mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// A host name, an address, or a directory (leading `/`) that holds the Unix socket.
    pub host: String,
    pub port: u16,
    pub role: Role,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    pub host: String,
    pub port: u16,
    pub mirroring_target_index: usize,
}

/// `[pools.<name>.users.<n>]`, with the timeouts of the pool and of `[general]` filled in
/// (user over pool over general).
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    pub username: String,
    /// Absent only for trust users and where an auth_query is set.
    pub password: Option<String>,
    /// Never `Md5` where the password is a SCRAM secret, nor `ScramSha256` where it is an md5 hash.
    pub auth_type: AuthType,
    /// Name to log in to the server with; `username` unless configured.
    pub server_username: String,
    pub server_password: Option<String>,
    /// Server connections per server of the pool.
    pub pool_size: u32,
    pub min_pool_size: u32,
    pub pool_mode: PoolMode,
    pub server_lifetime: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub connect_timeout: Duration,
    pub timeouts: Timeouts,
    /// Server connections beyond `pool_size`, per server of the pool, for when a client has waited for
    /// `reserve_pool_timeout` (`None`: never).
    pub reserve_pool_size: u32,
    pub reserve_pool_timeout: Option<Duration>,
    /// Clients of this name, over all databases; `None`: any number.
    pub max_client_connections: Option<usize>,
    /// Server connections of users of this name, over all databases; `None`: any number.
    pub max_user_connections: Option<usize>,
}
