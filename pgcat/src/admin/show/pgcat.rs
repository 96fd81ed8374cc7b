//! Database `pgcat`: the tables as PgCat has them.

use std::time::{Duration, SystemTime};

use super::super::state::{AddressState, Averages, Doing, PoolState, State};
use super::{Row, Show, pgbouncer, row, settings};
use crate::pool::statistics::Phase;

pub(super) fn rows(show: Show, state: &State) -> Vec<Row> {
    match show {
        Show::Clients => clients(state),
        Show::Config => settings::pgcat(&state.config),
        Show::Databases => each_server(state, database),
        Show::Pools => state
            .pools
            .iter()
            .map(|pool| self::pool(pool, state))
            .collect(),
        Show::Servers => servers(state),
        Show::Stats => each_server(state, statistics),
        Show::Users => state
            .pools
            .iter()
            .map(|pool| row![pool.pool.identity.user, pool_mode(pool)])
            .collect(),
        Show::Version => vec![row![format!("PgCat {}", env!("CARGO_PKG_VERSION"))]],
        other => pgbouncer::rows(other, state),
    }
}

fn each_server(state: &State, row: impl Fn(&PoolState, &AddressState) -> Row) -> Vec<Row> {
    let servers = state
        .pools
        .iter()
        .flat_map(|pool| pool.servers.iter().map(move |server| (pool, server)));
    servers.map(|(pool, server)| row(pool, server)).collect()
}

pub(super) fn pool_mode(pool: &PoolState) -> &'static str {
    match pool.pool.user.pool_mode {
        crate::config::model::PoolMode::Session => "session",
        crate::config::model::PoolMode::Transaction => "transaction",
    }
}

fn database(pool: &PoolState, server: &AddressState) -> Row {
    let address = pool.address(server);
    let user = &pool.pool.user;
    row![
        address.name,
        address.server.host,
        address.server.port,
        address.database,
        user.username,
        user.pool_size,
        user.min_pool_size,
        user.reserve_pool_size,
        pool_mode(pool),
        user.pool_size,
        server.connections.len(),
        u8::from(pool.paused),
        u8::from(pool.disabled || server.ban.is_some()),
    ]
}

/// Seconds, and the rest in microseconds.
pub(super) fn split(time: Duration) -> (u64, u32) {
    (time.as_secs(), time.subsec_micros())
}

fn pool(pool: &PoolState, state: &State) -> Row {
    let doing = |what| {
        pool.clients(state)
            .filter(|client| client.doing == what)
            .count()
    };
    let in_phase = |phase| pool.in_phase(phase);
    let (maxwait, maxwait_us) = split(pool.longest_wait);
    row![
        pool.pool.identity.database,
        pool.pool.identity.user,
        pool_mode(pool),
        doing(Doing::Idle),
        doing(Doing::Active),
        doing(Doing::Waiting),
        0,
        in_phase(Phase::Active),
        in_phase(Phase::Idle),
        0,
        in_phase(Phase::Tested),
        in_phase(Phase::Login),
        maxwait,
        maxwait_us,
    ]
}

/// PgCat's way to write the numbers of clients and servers.
fn number(id: u64) -> String {
    format!("{id:#010X}").replacen("0X", "0x", 1)
}

fn age(since: SystemTime, now: SystemTime) -> u64 {
    now.duration_since(since).unwrap_or_default().as_secs()
}

fn clients(state: &State) -> Vec<Row> {
    let clients = state.clients.iter().map(|client| {
        let (maxwait, maxwait_us) = split(client.waiting_for);
        row![
            number(client.id),
            client.database,
            client.user,
            client.application_name,
            match client.doing {
                Doing::Active => "active",
                Doing::Idle => "idle",
                Doing::Waiting => "waiting",
            },
            client.counters.transactions,
            client.counters.queries,
            client.counters.errors,
            age(client.connected, state.now),
            maxwait,
            maxwait_us,
        ]
    });
    clients.collect()
}

fn servers(state: &State) -> Vec<Row> {
    let mut rows = Vec::new();
    for pool in &state.pools {
        for server in &pool.servers {
            for connection in &server.connections {
                let totals = connection.totals();
                rows.push(row![
                    number(connection.id),
                    pool.pool.identity.database,
                    pool.pool.identity.user,
                    pool.address(server).name,
                    state.application_name(connection),
                    match connection.phase() {
                        Phase::Active => "active",
                        Phase::Idle => "idle",
                        Phase::Login => "login",
                        Phase::Tested => "tested",
                    },
                    totals.transactions,
                    totals.queries,
                    totals.sent,
                    totals.received,
                    age(connection.opened, state.now),
                    0,
                    0,
                    0,
                    connection.statements(),
                ]);
            }
        }
    }
    rows
}

fn statistics(pool: &PoolState, server: &AddressState) -> Row {
    let totals = server.totals;
    let average = Averages::over(server.recent, server.period);
    row![
        pool.address(server).name,
        pool.pool.identity.database,
        pool.pool.identity.user,
        totals.transactions,
        totals.queries,
        totals.received,
        totals.sent,
        // PgCat counts these in milliseconds, and never the first; microseconds are PgBouncer's.
        totals.transaction_time / 1000,
        totals.query_time / 1000,
        totals.wait_time,
        totals.errors,
        average.transactions,
        average.queries,
        average.received,
        average.sent,
        average.errors,
        average.transaction_time / 1000,
        average.query_time / 1000,
        average.wait_time,
    ]
}
