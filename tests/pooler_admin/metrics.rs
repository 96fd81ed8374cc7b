//! The HTTP endpoint.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use test_support::{Pooler, PoolerConfig};

use crate::stage::{client, config, start};

pub fn with_metrics(config: &PoolerConfig) -> (Pooler, u16) {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let lines = format!("enable_prometheus_exporter = true\nprometheus_exporter_port = {port}");
    (start(&config.clone().general(&lines)), port)
}

pub fn get(port: u16, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connection");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

#[test]
fn metrics_have_pgcats_names_and_labels() {
    let (pooler, port) = with_metrics(&config(2));
    let mut one = client(&pooler);
    one.run("SELECT 1");
    one.run("BEGIN");
    let (head, body) = get(port, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let server = "{database=\"postgres\",host=\"127.0.0.1\",index=\"0\",pool=\"postgres\",\
                  role=\"primary\",shard=\"0\",username=\"postgres\"}";
    let pool = "{pool=\"postgres\",user=\"postgres\"}";
    for line in [
        format!("pgcat_servers_active_count{server} 1"),
        format!("pgcat_servers_is_paused{server} 0"),
        format!("pgcat_databases_pool_size{server} 2"),
        format!("pgcat_pools_cl_active{pool} 1"),
        format!("pgcat_stats_total_xact_count{server} 1"),
        format!("pgcat_stats_total_query_count{server} 2"),
        "# TYPE pgcat_stats_total_query_count counter".to_owned(),
        "# TYPE pgcat_pools_sv_idle gauge".to_owned(),
    ] {
        assert!(
            body.lines().any(|found| found == line),
            "no {line} in {body}"
        );
    }
    let names = [
        "stats_total_query_count stats_total_query_time stats_total_received stats_total_sent \
         stats_total_xact_count stats_total_xact_time stats_total_wait_time stats_avg_query_count \
         stats_avg_query_time stats_avg_recv stats_avg_sent stats_avg_errors stats_avg_xact_count \
         stats_avg_xact_time stats_avg_wait_time pools_maxwait_us pools_maxwait pools_cl_waiting \
         pools_cl_active pools_cl_idle pools_sv_idle pools_sv_active pools_sv_login \
         pools_sv_tested servers_bytes_received servers_bytes_sent servers_transaction_count \
         servers_query_count servers_error_count servers_idle_count servers_active_count \
         servers_tested_count servers_login_count servers_is_banned servers_is_paused \
         databases_pool_size databases_current_connections",
    ];
    for name in names[0].split_whitespace() {
        assert!(body.contains(&format!("\npgcat_{name}{{")), "{name}");
    }
}

#[test]
fn health_and_the_rest() {
    let (_pooler, port) = with_metrics(&config(2));
    let (head, body) = get(port, "/health");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body, "ok\n");
    assert!(get(port, "/else").0.starts_with("HTTP/1.1 404"));
}
