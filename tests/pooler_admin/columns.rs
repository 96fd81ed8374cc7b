//! Names and types of columns, by which tools find what they look for.

use test_support::PgBouncer;
use test_support::wire::Wire;

use crate::stage::{admin, client, config, described, row, server, start};

const TEXT: u32 = 25;
const INT4: u32 = 23;
const NUMERIC: u32 = 1700;

fn columns(session: &mut Wire, show: &str) -> Vec<(String, u32)> {
    let messages = session.query(&format!("SHOW {show}"));
    match messages.first() {
        Some(first) if first.tag == b'T' => described(first),
        _ => panic!("SHOW {show}: {messages:?}"),
    }
}

/// What PgBouncer 1.18 shows comes first, in its order and types; newer versions added to it.
#[test]
fn pgbouncers_columns_are_where_they_were() {
    let original = PgBouncer::start(server(), "transaction", 5);
    let mut original = Wire::connect(original.port(), "postgres", "pgbouncer");
    let pooler = start(&config(2));
    let mut ours = admin(&pooler, "pgbouncer");
    for show in [
        "VERSION",
        "CONFIG",
        "DATABASES",
        "POOLS",
        "CLIENTS",
        "SERVERS",
        "SOCKETS",
        "ACTIVE_SOCKETS",
        "USERS",
        "STATS",
        "STATS_TOTALS",
        "STATS_AVERAGES",
        "TOTALS",
        "LISTS",
        "MEM",
        "DNS_HOSTS",
        "DNS_ZONES",
    ] {
        let expected = columns(&mut original, show);
        let found = columns(&mut ours, show);
        assert!(found.len() >= expected.len(), "SHOW {show}: {found:?}");
        assert_eq!(found[..expected.len()], expected, "SHOW {show}");
        let tag = |session: &mut Wire| {
            let messages = session.query(&format!("SHOW {show}"));
            messages[messages.len() - 2].clone()
        };
        assert_eq!(tag(&mut ours), tag(&mut original), "SHOW {show}");
    }
}

/// The lists and totals are rows, not columns, to be found by their names.
#[test]
fn pgbouncers_rows_are_there() {
    let original = PgBouncer::start(server(), "transaction", 5);
    let mut original = Wire::connect(original.port(), "postgres", "pgbouncer");
    let pooler = start(&config(2));
    let mut ours = admin(&pooler, "pgbouncer");
    let names = |session: &mut Wire, show: &str| -> Vec<String> {
        let messages = session.query(show);
        let rows = messages.iter().filter(|message| message.tag == b'D');
        rows.filter_map(|row| row.row().swap_remove(0)).collect()
    };
    for show in ["SHOW LISTS", "SHOW TOTALS", "SHOW MEM"] {
        assert_eq!(names(&mut ours, show), names(&mut original, show), "{show}");
    }
    let known = names(&mut original, "SHOW CONFIG");
    for name in names(&mut ours, "SHOW CONFIG") {
        assert!(known.contains(&name), "{name}");
    }
}

#[test]
fn pgcats_columns() {
    let pooler = start(&config(2));
    let mut session = admin(&pooler, "pgcat");
    let tables: &[(&str, &[(u32, &str)])] = &[
        ("VERSION", &[(TEXT, "version")]),
        ("CONFIG", &[(TEXT, "key value default changeable")]),
        (
            "DATABASES",
            &[
                (TEXT, "name host port database force_user"),
                (INT4, "pool_size min_pool_size reserve_pool"),
                (TEXT, "pool_mode"),
                (INT4, "max_connections current_connections paused disabled"),
            ],
        ),
        (
            "POOLS",
            &[
                (TEXT, "database user pool_mode"),
                (
                    NUMERIC,
                    "cl_idle cl_active cl_waiting cl_cancel_req sv_active sv_idle sv_used \
                     sv_tested sv_login maxwait maxwait_us",
                ),
            ],
        ),
        (
            "CLIENTS",
            &[
                (TEXT, "client_id database user application_name state"),
                (
                    NUMERIC,
                    "transaction_count query_count error_count age_seconds maxwait maxwait_us",
                ),
            ],
        ),
        (
            "SERVERS",
            &[
                (
                    TEXT,
                    "server_id database_name user address_id application_name state",
                ),
                (
                    NUMERIC,
                    "transaction_count query_count bytes_sent bytes_received age_seconds \
                     prepare_cache_hit prepare_cache_miss prepare_cache_eviction \
                     prepare_cache_size",
                ),
            ],
        ),
        (
            "STATS",
            &[
                (TEXT, "instance database user"),
                (
                    NUMERIC,
                    "total_xact_count total_query_count total_received total_sent \
                     total_xact_time total_query_time total_wait_time total_errors \
                     avg_xact_count avg_query_count avg_recv avg_sent avg_errors avg_xact_time \
                     avg_query_time avg_wait_time",
                ),
            ],
        ),
        ("LISTS", &[(TEXT, "list"), (INT4, "items")]),
        ("USERS", &[(TEXT, "name pool_mode")]),
        (
            "BANS",
            &[(
                TEXT,
                "db user role host reason ban_time ban_duration_seconds ban_remaining_seconds",
            )],
        ),
    ];
    for (show, groups) in tables {
        let expected: Vec<_> = groups
            .iter()
            .flat_map(|(oid, names)| {
                names
                    .split_whitespace()
                    .map(move |name| (name.to_owned(), *oid))
            })
            .collect();
        assert_eq!(columns(&mut session, show), expected, "SHOW {show}");
    }
}

/// Limits, and what is used of them.
#[test]
fn limits_are_shown() {
    let config = test_support::PoolerConfig::new(server())
        .general("admin_auth_type = \"trust\"\nmax_client_conn = 11\nclient_idle_timeout = 60000")
        .pool("max_client_connections = 12\nmax_db_connections = 13")
        .user_with(
            "postgres",
            2,
            "auth_type = \"trust\"\nmax_client_connections = 14\nmax_user_connections = 15\n\
             reserve_pool_size = 3",
        );
    let pooler = start(&config);
    let mut clients = [client(&pooler), client(&pooler)];
    for client in &mut clients {
        client.run("BEGIN");
    }
    let mut session = admin(&pooler, "pgbouncer");
    let mut assert_shown = |show: &str, column: &str, name: &str, expected: &[(&str, &str)]| {
        let row = row(&mut session, show, column, name);
        for (column, value) in expected {
            assert_eq!(row[*column], *value, "{show}: {column}");
        }
    };
    let of_database = [
        ("pool_size", "2"),
        ("reserve_pool_size", "3"),
        ("max_connections", "13"),
        ("current_connections", "2"),
        ("max_client_connections", "12"),
        ("current_client_connections", "2"),
    ];
    assert_shown("SHOW DATABASES", "name", "postgres", &of_database);
    let of_user = [
        ("max_user_connections", "15"),
        ("current_connections", "2"),
        ("max_user_client_connections", "14"),
        ("current_client_connections", "2"),
    ];
    assert_shown("SHOW USERS", "name", "postgres", &of_user);
    for (key, value) in [("max_client_conn", "11"), ("client_idle_timeout", "60")] {
        assert_shown("SHOW CONFIG", "key", key, &[("value", value)]);
    }
}
