//! `make bench`: what stream tables and the pooler cost, measured in one run.
//!
//! With `BENCH_QUICK=1` there are fewer repetitions and smaller tables.
//! `bench latency pooler` runs only the parts named (latency, refresh, flat, many, nexmark, capture, tpch, pooler).

mod capture;
mod flat;
mod latency;
mod many;
mod nexmark;
mod orders;
mod plan;
mod pooler;
mod refresh;
mod report;
mod stage;
mod tpch;

use plan::Plan;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let plan = Plan::from_environment();
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|given| given == part);

    println!(
        "PostgreSQL {}, {}; {} processors; everything on this machine, over TCP on loopback.",
        stage::MAJOR,
        stage::SETTINGS_SHOWN,
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    if wanted("latency") {
        latency::run(&plan).await;
    }
    if wanted("refresh") {
        refresh::run(&plan).await;
    }
    if wanted("flat") {
        flat::run(&plan).await;
    }
    if wanted("many") {
        many::run(&plan).await;
    }
    if wanted("nexmark") {
        nexmark::run(&plan).await;
    }
    if wanted("capture") {
        capture::run(&plan).await;
    }
    if wanted("tpch") {
        tpch::run(&plan).await;
    }
    if wanted("pooler") {
        pooler::run(&plan);
    }
}
