//! The columns of every table, with their types.

use super::{Dialect, Show};
use crate::plugins::Column;

const TEXT: u32 = 25;
const INT4: u32 = 23;
const INT8: u32 = 20;
const NUMERIC: u32 = 1700;

/// Names of columns of one type.
type Group = (u32, &'static str);

const STATS_TOTALS: &str =
    "xact_count query_count bytes_received bytes_sent xact_time query_time wait_time";

pub(super) fn of(show: Show, dialect: Dialect) -> Vec<Column> {
    let columns = groups(show, dialect).iter().flat_map(|(type_oid, names)| {
        names.split_whitespace().map(|name| Column {
            name: name.to_owned(),
            type_oid: *type_oid,
        })
    });
    columns.collect()
}

fn groups(show: Show, dialect: Dialect) -> &'static [Group] {
    match (dialect, show) {
        (Dialect::Pgcat, Show::Databases) => &[
            (TEXT, "name host port database force_user"),
            (INT4, "pool_size min_pool_size reserve_pool"),
            (TEXT, "pool_mode"),
            (INT4, "max_connections current_connections paused disabled"),
        ],
        (Dialect::Pgcat, Show::Pools) => &[
            (TEXT, "database user pool_mode"),
            (
                NUMERIC,
                "cl_idle cl_active cl_waiting cl_cancel_req sv_active sv_idle sv_used sv_tested \
                 sv_login maxwait maxwait_us",
            ),
        ],
        (Dialect::Pgcat, Show::Clients) => &[
            (TEXT, "client_id database user application_name state"),
            (
                NUMERIC,
                "transaction_count query_count error_count age_seconds maxwait maxwait_us",
            ),
        ],
        (Dialect::Pgcat, Show::Servers) => &[
            (
                TEXT,
                "server_id database_name user address_id application_name state",
            ),
            (
                NUMERIC,
                "transaction_count query_count bytes_sent bytes_received age_seconds \
                 prepare_cache_hit prepare_cache_miss prepare_cache_eviction prepare_cache_size",
            ),
        ],
        (Dialect::Pgcat, Show::Stats) => &[
            (TEXT, "instance database user"),
            (
                NUMERIC,
                "total_xact_count total_query_count total_received total_sent total_xact_time \
                 total_query_time total_wait_time total_errors avg_xact_count avg_query_count \
                 avg_recv avg_sent avg_errors avg_xact_time avg_query_time avg_wait_time",
            ),
        ],
        // The columns of PgBouncer 1.18 first, in its order; after them those of later versions.
        (_, Show::Databases) => &[
            (TEXT, "name host"),
            (INT4, "port"),
            (TEXT, "database force_user"),
            (INT4, "pool_size min_pool_size reserve_pool"),
            (TEXT, "pool_mode"),
            (
                INT4,
                "max_connections current_connections paused disabled reserve_pool_size \
                 server_lifetime max_client_connections current_client_connections",
            ),
        ],
        (_, Show::Pools | Show::PoolsExtended) => &[
            (TEXT, "database user"),
            (
                INT4,
                "cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active \
                 sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait \
                 maxwait_us",
            ),
            (TEXT, "pool_mode load_balance_hosts"),
        ],
        (_, Show::Clients | Show::Servers) => &[
            (TEXT, "type user database state addr"),
            (INT4, "port"),
            (TEXT, "local_addr"),
            (INT4, "local_port"),
            (TEXT, "connect_time request_time"),
            (INT4, "wait wait_us close_needed"),
            (TEXT, "ptr link"),
            (INT4, "remote_pid"),
            (TEXT, "tls application_name"),
            (INT4, "prepared_statements"),
            (INT8, "id"),
        ],
        (_, Show::Sockets | Show::ActiveSockets) => &[
            (TEXT, "type user database state addr"),
            (INT4, "port"),
            (TEXT, "local_addr"),
            (INT4, "local_port"),
            (TEXT, "connect_time request_time"),
            (INT4, "wait wait_us close_needed"),
            (TEXT, "ptr link"),
            (INT4, "remote_pid"),
            (TEXT, "tls application_name"),
            (
                INT4,
                "recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail \
                 prepared_statements",
            ),
            (INT8, "id"),
        ],
        (_, Show::Stats) => &[
            (TEXT, "database"),
            (
                NUMERIC,
                "total_xact_count total_query_count total_received total_sent total_xact_time \
                 total_query_time total_wait_time avg_xact_count avg_query_count avg_recv avg_sent \
                 avg_xact_time avg_query_time avg_wait_time",
            ),
        ],
        (_, Show::StatsTotals | Show::StatsAverages) => {
            &[(TEXT, "database"), (NUMERIC, STATS_TOTALS)]
        }
        (_, Show::Totals) => &[(TEXT, "name"), (NUMERIC, "value")],
        (_, Show::Bans) => &[(
            TEXT,
            "db user role host reason ban_time ban_duration_seconds ban_remaining_seconds",
        )],
        (_, Show::Config) => &[(TEXT, "key value default changeable")],
        (_, Show::DnsHosts) => &[(TEXT, "hostname"), (INT8, "ttl"), (TEXT, "addrs")],
        (_, Show::DnsZones) => &[(TEXT, "zonename"), (INT8, "serial"), (INT4, "count")],
        (_, Show::Help) => &[],
        (_, Show::Lists) => &[(TEXT, "list"), (INT4, "items")],
        (_, Show::Mem) => &[(TEXT, "name"), (INT4, "size used free memtotal")],
        (_, Show::Peers) => &[(INT4, "peer_id"), (TEXT, "host"), (INT4, "port pool_size")],
        (_, Show::PeerPools) => &[(
            INT4,
            "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login",
        )],
        (_, Show::PreparedStatements) => &[(TEXT, "name statement"), (INT4, "holders")],
        (_, Show::Replication) => &[
            (TEXT, "database user"),
            (INT4, "shard"),
            (TEXT, "host"),
            (INT4, "port"),
            (TEXT, "role"),
            (INT4, "timeline"),
            (TEXT, "lsn"),
            (INT8, "lag_ms max_lag_ms"),
            (INT4, "lagging"),
        ],
        (_, Show::State) => &[(TEXT, "key value")],
        (Dialect::Pgcat, Show::Users) => &[(TEXT, "name pool_mode")],
        (_, Show::Users) => &[
            (TEXT, "name pool_mode"),
            (
                INT4,
                "pool_size reserve_pool_size max_user_connections current_connections \
                 max_user_client_connections current_client_connections",
            ),
        ],
        (_, Show::Version) => &[(TEXT, "version")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_sockets_are_those_of_clients_and_more() {
        let names = |show| -> Vec<String> {
            let columns = of(show, Dialect::Pgbouncer);
            columns.into_iter().map(|column| column.name).collect()
        };
        let common = 18;
        assert_eq!(
            names(Show::Sockets)[..common],
            names(Show::Clients)[..common]
        );
        assert_eq!(names(Show::Clients)[common - 1], "application_name");
    }
}
