//! Database `pgbouncer`: the tables as PgBouncer has them.

use std::net::SocketAddr;
use std::time::SystemTime;

use super::super::state::{Averages, ClientState, Doing, PoolState, State};
use super::pgcat::{pool_mode, split};
use super::{Row, Show, row, settings};
use crate::calendar;
use crate::net::session::Session;
use crate::pool::address::Address;
use crate::pool::health::BanReason;
use crate::pool::shared::PoolShared;
use crate::pool::statistics::{Connection, Phase, Totals};

/// What PgBouncer calls itself. Tools read from it which columns they may expect.
const VERSION: &str = "PgBouncer 1.24.1";

pub(super) fn rows(show: Show, state: &State) -> Vec<Row> {
    match show {
        Show::ActiveSockets => sockets(state, true),
        Show::Bans => bans(state),
        Show::Clients => state
            .clients
            .iter()
            .map(|client| self::client(client, state, ""))
            .collect(),
        Show::Config => settings::pgbouncer(&state.config),
        Show::Databases => databases(state),
        Show::DnsHosts | Show::DnsZones | Show::Help | Show::Peers | Show::PeerPools => Vec::new(),
        Show::Lists => lists(state),
        Show::Mem => memory(state),
        Show::Pools | Show::PoolsExtended => pools(state),
        Show::PreparedStatements => state
            .statements
            .iter()
            .map(|(name, text, holders)| row![name, text, holders])
            .collect(),
        Show::Replication => replication(state),
        Show::Servers => servers(state, "").map(|(_, row)| row).collect(),
        Show::Sockets => sockets(state, false),
        Show::State => {
            let yes = |is: bool| if is { "yes" } else { "no" };
            vec![
                row!["active", yes(!state.paused && !state.suspended)],
                row!["paused", yes(state.paused)],
                row!["suspended", yes(state.suspended)],
            ]
        }
        Show::Stats => each_database(state, |totals, average| {
            let mut row = self::totals(totals);
            row.extend(averages(average));
            row
        }),
        Show::StatsAverages => each_database(state, |_, average| averages(average)),
        Show::StatsTotals => each_database(state, |totals, _| self::totals(totals)),
        Show::Totals => all(state),
        Show::Users => users(state),
        Show::Version => vec![row![VERSION]],
    }
}

fn bans(state: &State) -> Vec<Row> {
    let mut rows = Vec::new();
    for pool in &state.pools {
        for server in &pool.servers {
            let Some(ban) = &server.ban else {
                continue;
            };
            let address = pool.address(server);
            let remaining = ban.until.saturating_sub(state.coarse_now);
            rows.push(row![
                pool.pool.identity.database,
                pool.pool.identity.user,
                address.role_name(),
                address.server.host,
                match ban.reason {
                    BanReason::AdminBan => format!("AdminBan({})", ban.length.as_secs()),
                    BanReason::FailedCheckout => "FailedCheckout".to_owned(),
                    BanReason::FailedHealthCheck => "FailedHealthCheck".to_owned(),
                },
                time(ban.since),
                ban.length.as_secs(),
                remaining.div_ceil(1000),
            ]);
        }
    }
    rows
}

/// How far the servers have come, where that is watched.
fn replication(state: &State) -> Vec<Row> {
    let mut rows = Vec::new();
    for pool in &state.pools {
        let settings = &pool.pool.settings;
        if settings.max_replica_lag.is_none() && !settings.read_your_writes {
            continue;
        }
        for address in &pool.pool.addresses {
            let seen = address.replay.seen();
            let position = seen.map(|seen| seen.position);
            let limit = settings.max_replica_lag;
            rows.push(vec![
                Some(pool.pool.identity.database.clone()),
                Some(pool.pool.identity.user.clone()),
                Some(address.shard.to_string()),
                Some(address.server.host.clone()),
                Some(address.server.port.to_string()),
                Some(address.role_name().to_owned()),
                position.map(|position| position.timeline.to_string()),
                position.map(|position| position.to_string()),
                seen.and_then(|seen| seen.behind)
                    .map(|behind| behind.to_string()),
                limit.map(|limit| limit.as_millis().to_string()),
                Some(u8::from(address.replay.is_lagging()).to_string()),
            ]);
        }
    }
    rows
}

fn admin_port(state: &State) -> u16 {
    state.listen.port()
}

/// The names of the databases, and the first pool of each.
fn by_database(state: &State) -> Vec<(&str, &PoolState)> {
    let mut databases: Vec<(&str, &PoolState)> = Vec::new();
    for pool in &state.pools {
        let name = pool.pool.identity.database.as_str();
        if !databases.iter().any(|(known, _)| *known == name) {
            databases.push((name, pool));
        }
    }
    databases
}

fn of<'a>(state: &'a State, database: &'a str) -> impl Iterator<Item = &'a PoolState> {
    let all = state.pools.iter();
    all.filter(move |pool| pool.pool.identity.database == database)
}

fn databases(state: &State) -> Vec<Row> {
    let admin = row![
        "pgbouncer",
        "",
        admin_port(state),
        "pgbouncer",
        "pgbouncer",
        2,
        0,
        0,
        "statement",
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        state.clients.iter().filter(|client| client.admin).count(),
    ];
    let mut rows = vec![admin];
    rows[0][1] = None;
    for (name, first) in by_database(state) {
        // The primary stands for all servers of a database, as PgBouncer has but one.
        let home = first.pool.home();
        let connections: usize = of(state, name)
            .flat_map(|pool| &pool.servers)
            .map(|server| server.connections.len())
            .sum();
        let clients = state
            .clients
            .iter()
            .filter(|client| client.database == name);
        let user = &first.pool.user;
        let mut row = row![
            name,
            home.server.host,
            home.server.port,
            home.database,
            "",
            user.pool_size,
            user.min_pool_size,
            user.reserve_pool_size,
            pool_mode(first),
            first.pool.settings.max_db_connections.unwrap_or(0),
            connections,
            u8::from(of(state, name).all(|pool| pool.paused)),
            u8::from(of(state, name).all(|pool| pool.disabled)),
            user.reserve_pool_size,
            user.server_lifetime
                .map_or(0, |lifetime| lifetime.as_secs()),
            first.pool.settings.max_client_connections.unwrap_or(0),
            clients.count(),
        ];
        // Clients keep their own user.
        row[4] = None;
        rows.push(row);
    }
    rows
}

fn pools(state: &State) -> Vec<Row> {
    let admins = state.clients.iter().filter(|client| client.admin).count();
    let mut rows = vec![row![
        "pgbouncer",
        "pgbouncer",
        admins,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        "statement",
        "",
    ]];
    for pool in &state.pools {
        let waiting = pool
            .clients(state)
            .filter(|client| client.doing == Doing::Waiting)
            .count();
        let (maxwait, maxwait_us) = split(pool.longest_wait);
        rows.push(row![
            pool.pool.identity.database,
            pool.pool.identity.user,
            // In PgBouncer a client is active unless it waits.
            pool.clients(state).count() - waiting,
            waiting,
            0,
            0,
            pool.in_phase(Phase::Active),
            0,
            0,
            pool.in_phase(Phase::Idle),
            0,
            pool.in_phase(Phase::Tested),
            pool.in_phase(Phase::Login),
            maxwait,
            maxwait_us,
            pool_mode(pool),
            "",
        ]);
    }
    for row in &mut rows {
        // Load balancing is between the servers of a pool here, not the addresses of a host.
        row[16] = None;
    }
    rows
}

fn time(at: SystemTime) -> String {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{} UTC", calendar::utc(since.as_secs()))
}

fn ends(ends: Option<(SocketAddr, SocketAddr)>) -> [String; 4] {
    match ends {
        Some((peer, local)) => [
            peer.ip().to_string(),
            peer.port().to_string(),
            local.ip().to_string(),
            local.port().to_string(),
        ],
        // A Unix socket.
        None => ["unix".into(), "0".into(), "unix".into(), "0".into()],
    }
}

fn pointer(id: u64) -> String {
    format!("{id:#x}")
}

fn client(client: &ClientState, state: &State, prefix: &str) -> Row {
    let doing = match client.doing {
        Doing::Waiting => "waiting",
        Doing::Active | Doing::Idle => "active",
    };
    let [addr, port, local_addr, local_port] = ends(client.peer.zip(client.local));
    let (wait, wait_us) = split(client.waiting_for);
    let server = state
        .connections()
        .find(|connection| connection.client() == Some(client.id));
    row![
        "C",
        client.user,
        client.database,
        format!("{prefix}{doing}"),
        addr,
        port,
        local_addr,
        local_port,
        time(client.connected),
        time(client.requested),
        wait,
        wait_us,
        0,
        pointer(client.id),
        server.map_or(String::new(), |server| pointer(server.id)),
        0,
        client.tls,
        client.application_name,
        client.prepared_statements,
        client.id,
    ]
}

/// The server connections, each with its row.
fn servers<'a>(state: &'a State, prefix: &'a str) -> impl Iterator<Item = (&'a Connection, Row)> {
    let addresses = state.pools.iter().flat_map(|pool| {
        let of_server = move |server| (pool, pool.address(server), server);
        pool.servers.iter().map(of_server)
    });
    let connections = addresses.flat_map(|(pool, address, server)| {
        let each = server.connections.iter();
        each.map(move |connection| (&pool.pool, address, &**connection))
    });
    connections.map(move |(pool, address, connection)| {
        (connection, server(state, pool, address, connection, prefix))
    })
}

fn server(
    state: &State,
    pool: &PoolShared,
    address: &Address,
    connection: &Connection,
    prefix: &str,
) -> Row {
    let phase = match connection.phase() {
        Phase::Active => "active",
        Phase::Idle => "idle",
        Phase::Login => "login",
        Phase::Tested => "tested",
    };
    let [mut addr, mut port, local_addr, local_port] = ends(connection.ends());
    if connection.ends().is_none() {
        addr.clone_from(&address.server.host);
        port = address.server.port.to_string();
    }
    row![
        "S",
        pool.identity.user,
        pool.identity.database,
        format!("{prefix}{phase}"),
        addr,
        port,
        local_addr,
        local_port,
        time(connection.opened),
        time(state.requested(connection).unwrap_or(connection.opened)),
        0,
        0,
        u8::from(connection.generation != address.health.generation()),
        pointer(connection.id),
        connection.client().map_or(String::new(), pointer),
        connection.pid(),
        "",
        state.application_name(connection),
        connection.statements(),
        connection.id,
    ]
}

fn sockets(state: &State, only_active: bool) -> Vec<Row> {
    let clients = state
        .clients
        .iter()
        .filter(|client| !only_active || client.doing != Doing::Idle)
        .map(|client| self::client(client, state, "cl_"));
    let servers = servers(state, "sv_")
        .filter(|(connection, _)| !only_active || connection.phase() == Phase::Active)
        .map(|(_, row)| row);
    // Buffers are lent to sockets only while something is pending.
    let rows = clients.chain(servers).map(|mut row: Row| {
        row.splice(18..18, (0..7).map(|_| Some("0".to_owned())));
        row
    });
    rows.collect()
}

fn users(state: &State) -> Vec<Row> {
    let admins = state.clients.iter().filter(|client| client.admin).count();
    let mut rows = vec![row!["pgbouncer", "", "", "", 0, 0, 0, admins]];
    let mut names: Vec<&str> = Vec::new();
    for pool in &state.pools {
        let name = pool.pool.identity.user.as_str();
        if names.contains(&name) {
            continue;
        }
        names.push(name);
        let is_his = |other: &&PoolState| other.pool.identity.user == name;
        let connections: usize = state
            .pools
            .iter()
            .filter(is_his)
            .flat_map(|pool| &pool.servers)
            .map(|server| server.connections.len())
            .sum();
        let clients = state
            .clients
            .iter()
            .filter(|client| !client.admin && client.user == name);
        rows.push(row![
            name,
            "",
            "",
            "",
            pool.pool.user.max_user_connections.unwrap_or(0),
            connections,
            pool.pool.user.max_client_connections.unwrap_or(0),
            clients.count(),
        ]);
    }
    for row in &mut rows {
        // Mode and sizes are a pool's, not a user's.
        row[1..4].fill(None);
    }
    rows
}

fn each_database(state: &State, row: impl Fn(Totals, Averages) -> Row) -> Vec<Row> {
    let mut rows = Vec::new();
    let names = std::iter::once("pgbouncer").chain(by_database(state).into_iter().map(|(n, _)| n));
    for name in names {
        let (totals, average) = state.sum(|pool| pool.pool.identity.database == name);
        let mut full = row![name];
        full.extend(row(totals, average));
        rows.push(full);
    }
    rows
}

/// "Received" is from clients, "sent" is to them.
fn totals(totals: Totals) -> Row {
    row![
        totals.transactions,
        totals.queries,
        totals.sent,
        totals.received,
        totals.transaction_time,
        totals.query_time,
        totals.wait_time,
    ]
}

fn averages(average: Averages) -> Row {
    row![
        average.transactions,
        average.queries,
        average.sent,
        average.received,
        average.transaction_time,
        average.query_time,
        average.wait_time,
    ]
}

fn all(state: &State) -> Vec<Row> {
    const NAMES: [&str; 7] = [
        "xact_count",
        "query_count",
        "client_bytes",
        "server_bytes",
        "xact_time",
        "query_time",
        "wait_time",
    ];
    let (totals, average) = state.sum(|_| true);
    let named = |prefix: &str, values: Row| -> Vec<Row> {
        let pairs = NAMES.iter().zip(values);
        pairs
            .map(|(name, value)| vec![Some(format!("{prefix}_{name}")), value])
            .collect()
    };
    let mut rows = named("total", self::totals(totals));
    rows.extend(named("avg", averages(average)));
    rows
}

fn lists(state: &State) -> Vec<Row> {
    let users = users(state).len();
    let idle = |phase: Phase| phase == Phase::Idle;
    let servers: Vec<_> = state.connections().collect();
    let free = servers.iter().filter(|server| idle(server.phase())).count();
    vec![
        row!["databases", by_database(state).len() + 1],
        row!["users", users],
        row!["pools", state.pools.len() + 1],
        row!["free_clients", 0],
        row!["used_clients", state.clients.len()],
        row!["login_clients", state.logging_in],
        row!["free_servers", free],
        row!["used_servers", servers.len() - free],
        row!["dns_names", 0],
        row!["dns_zones", 0],
        row!["dns_queries", 0],
        row!["dns_pending", 0],
    ]
}

fn memory(state: &State) -> Vec<Row> {
    let line = |name: &str, size: usize, used: usize| row![name, size, used, 0, size * used];
    vec![
        line(
            "user_cache",
            size_of::<crate::config::model::User>(),
            users(state).len() - 1,
        ),
        line(
            "db_cache",
            size_of::<crate::config::model::Pool>(),
            by_database(state).len(),
        ),
        line("pool_cache", size_of::<PoolShared>(), state.pools.len()),
        line(
            "server_cache",
            size_of::<crate::net::server::Server>(),
            state.connections().count(),
        ),
        line("client_cache", size_of::<Session>(), state.clients.len()),
        line(
            "iobuf_cache",
            crate::net::threads::SCRATCH,
            state.config.general.worker_threads,
        ),
    ]
}
