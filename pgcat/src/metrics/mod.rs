//! Metrics, by PgCat's names and labels, in Prometheus' text format.

pub mod http;

use std::fmt::Write as _;

use crate::admin::state::{AddressState, Averages, Doing, PoolState, State};
use crate::plugins::{self, MetricKind as Kind};
use crate::pool::statistics::Phase;

/// One metric: its name after `pgcat_`, its kind, and what it is.
type Metric<Of> = (&'static str, Kind, &'static str, fn(&Of) -> u64);

/// A server of a pool.
struct Server<'a> {
    pool: &'a PoolState,
    server: &'a AddressState,
    average: Averages,
}

impl Server<'_> {
    fn in_phase(&self, phase: Phase) -> u64 {
        let connections = self.server.connections.iter();
        connections
            .filter(|connection| connection.phase() == phase)
            .count() as u64
    }
}

/// A pool.
struct Pool<'a> {
    pool: &'a PoolState,
    state: &'a State,
}

impl Pool<'_> {
    fn clients(&self, doing: Doing) -> u64 {
        let clients = self.pool.clients(self.state);
        clients.filter(|client| client.doing == doing).count() as u64
    }
}

use Kind::{Counter, Gauge};

#[rustfmt::skip]
fn of_servers<'a>() -> Vec<Metric<Server<'a>>> {
    vec![
        ("stats_total_query_count", Counter, "Queries completed", |s| s.server.totals.queries),
        ("stats_total_query_time", Counter, "Time spent on queries, in milliseconds", |s| s.server.totals.query_time / 1000),
        ("stats_total_received", Counter, "Bytes received from the server", |s| s.server.totals.received),
        ("stats_total_sent", Counter, "Bytes sent to the server", |s| s.server.totals.sent),
        ("stats_total_xact_count", Counter, "Transactions completed", |s| s.server.totals.transactions),
        ("stats_total_xact_time", Counter, "Time spent in transactions, in milliseconds", |s| s.server.totals.transaction_time / 1000),
        ("stats_total_wait_time", Counter, "Time clients waited for a connection, in microseconds", |s| s.server.totals.wait_time),
        ("stats_total_errors", Counter, "Errors the server reported", |s| s.server.totals.errors),
        ("stats_avg_query_count", Gauge, "Queries per second", |s| s.average.queries),
        ("stats_avg_query_time", Gauge, "Time per query, in milliseconds", |s| s.average.query_time / 1000),
        ("stats_avg_recv", Gauge, "Bytes received from the server per second", |s| s.average.received),
        ("stats_avg_sent", Gauge, "Bytes sent to the server per second", |s| s.average.sent),
        ("stats_avg_errors", Gauge, "Errors per second", |s| s.average.errors),
        ("stats_avg_xact_count", Gauge, "Transactions per second", |s| s.average.transactions),
        ("stats_avg_xact_time", Gauge, "Time per transaction, in milliseconds", |s| s.average.transaction_time / 1000),
        ("stats_avg_wait_time", Gauge, "Time clients waited per second, in microseconds", |s| s.average.wait_time),
        ("servers_bytes_received", Counter, "Bytes received from the server", |s| s.server.totals.received),
        ("servers_bytes_sent", Counter, "Bytes sent to the server", |s| s.server.totals.sent),
        ("servers_transaction_count", Counter, "Transactions completed", |s| s.server.totals.transactions),
        ("servers_query_count", Counter, "Queries completed", |s| s.server.totals.queries),
        ("servers_error_count", Counter, "Errors the server reported", |s| s.server.totals.errors),
        ("servers_idle_count", Gauge, "Server connections that are idle", |s| s.in_phase(Phase::Idle)),
        ("servers_active_count", Gauge, "Server connections in use", |s| s.in_phase(Phase::Active)),
        ("servers_tested_count", Gauge, "Server connections being cleaned or checked", |s| s.in_phase(Phase::Tested)),
        ("servers_login_count", Gauge, "Server connections being opened", |s| s.in_phase(Phase::Login)),
        ("servers_is_banned", Gauge, "Whether the server is banned", |s| u64::from(s.server.ban.is_some())),
        ("servers_is_paused", Gauge, "Whether the pool is paused", |s| u64::from(s.pool.paused)),
        ("servers_replication_lag_ms", Gauge, "How long a replica is known to be behind, in milliseconds", |s| s.pool.address(s.server).replay.seen().and_then(|seen| seen.behind).unwrap_or(0)),
        ("databases_pool_size", Gauge, "Server connections at most", |s| s.pool.pool.user.pool_size.into()),
        ("databases_current_connections", Gauge, "Server connections", |s| s.server.connections.len() as u64),
    ]
}

#[rustfmt::skip]
fn of_pools<'a>() -> Vec<Metric<Pool<'a>>> {
    vec![
        ("pools_maxwait_us", Gauge, "The longest present wait for a connection, the part below a second, in microseconds", |p| p.pool.longest_wait.subsec_micros().into()),
        ("pools_maxwait", Gauge, "The longest present wait for a connection, in seconds", |p| p.pool.longest_wait.as_secs()),
        ("pools_cl_waiting", Gauge, "Clients that wait for a connection", |p| p.clients(Doing::Waiting)),
        ("pools_cl_active", Gauge, "Clients with a connection", |p| p.clients(Doing::Active)),
        ("pools_cl_idle", Gauge, "Clients without a transaction", |p| p.clients(Doing::Idle)),
        ("pools_sv_idle", Gauge, "Server connections that are idle", |p| p.pool.in_phase(Phase::Idle) as u64),
        ("pools_sv_active", Gauge, "Server connections in use", |p| p.pool.in_phase(Phase::Active) as u64),
        ("pools_sv_login", Gauge, "Server connections being opened", |p| p.pool.in_phase(Phase::Login) as u64),
        ("pools_sv_tested", Gauge, "Server connections being cleaned or checked", |p| p.pool.in_phase(Phase::Tested) as u64),
    ]
}

/// All metrics.
pub fn render(state: &State) -> String {
    let mut out = String::new();
    let servers: Vec<_> = state
        .pools
        .iter()
        .flat_map(|pool| pool.servers.iter().map(move |server| (pool, server)))
        .map(|(pool, server)| {
            let average = Averages::over(server.recent, server.period);
            let address = pool.address(server);
            let identity = &pool.pool.identity;
            let labels = labels(&[
                ("database", &address.database),
                ("host", &address.server.host),
                ("index", &address.number.to_string()),
                ("pool", &identity.database),
                ("role", address.role_name()),
                ("shard", &address.shard.to_string()),
                ("username", &identity.user),
            ]);
            let server = Server {
                pool,
                server,
                average,
            };
            (labels, server)
        })
        .collect();
    write(&mut out, &of_servers(), &servers);
    let pools = state.pools.iter().map(|pool| {
        let identity = &pool.pool.identity;
        let labels = labels(&[("pool", &identity.database), ("user", &identity.user)]);
        (labels, Pool { pool, state })
    });
    write(&mut out, &of_pools(), &pools.collect::<Vec<_>>());
    out
}

fn write<Of>(out: &mut String, metrics: &[Metric<Of>], samples: &[(String, Of)]) {
    for (name, kind, help, value) in metrics {
        head(out, name, *kind, help);
        for (labels, of) in samples {
            let _ = writeln!(out, "pgcat_{name}{{{labels}}} {}", value(of));
        }
    }
}

/// A plugin's metrics.
pub fn render_plugin(metrics: &[plugins::Metric]) -> String {
    let mut out = String::new();
    for metric in metrics {
        head(&mut out, metric.name, metric.kind, metric.help);
        for sample in &metric.samples {
            let pairs: Vec<_> = sample
                .labels
                .iter()
                .map(|(n, v)| (*n, v.as_str()))
                .collect();
            let (name, labels, value) = (metric.name, labels(&pairs), sample.value);
            let _ = writeln!(out, "pgcat_{name}{{{labels}}} {value}");
        }
    }
    out
}

fn head(out: &mut String, name: &str, kind: Kind, help: &str) {
    let kind = match kind {
        Counter => "counter",
        Gauge => "gauge",
    };
    let _ = write!(
        out,
        "\n# HELP pgcat_{name} {help}\n# TYPE pgcat_{name} {kind}\n"
    );
}

/// `name="value",…`, values escaped as the format asks.
fn labels(pairs: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let comma = if out.is_empty() { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::labels;

    #[test]
    fn values_are_escaped() {
        assert_eq!(
            labels(&[("a", "x\"y\\z\n"), ("b", "")]),
            r#"a="x\"y\\z\n",b="""#
        );
    }
}
