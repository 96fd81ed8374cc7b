//! Nexmark: persons, auctions and bids (1 : 3 : 46) at a fixed rate, and four of its queries as stream tables.
//!
//! The queries are those of the benchmark as they make sense for tables: 3, 4, 5 without its window, and 7
//! with a tumbling one.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ::nexmark::EventGenerator;
use ::nexmark::config::NexmarkConfig;
use ::nexmark::event::Event;
use test_support::Pooler;
use tokio::sync::mpsc;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::plan::Plan;
use crate::report::{Table, ms, percentile};
use crate::stage;

const TABLES: &str =
    "CREATE TABLE person (id bigint PRIMARY KEY, name text NOT NULL, email_address text NOT NULL,
         city text NOT NULL, state text NOT NULL, date_time bigint NOT NULL, extra text NOT NULL);
     CREATE TABLE auction (id bigint PRIMARY KEY, item_name text NOT NULL, initial_bid bigint NOT NULL,
         reserve bigint NOT NULL, date_time bigint NOT NULL, expires bigint NOT NULL, seller bigint NOT NULL,
         category bigint NOT NULL, extra text NOT NULL);
     CREATE TABLE bid (auction bigint NOT NULL, bidder bigint NOT NULL, price bigint NOT NULL,
         channel text NOT NULL, url text NOT NULL, date_time bigint NOT NULL, extra text NOT NULL);
     CREATE INDEX ON auction (seller);
     CREATE INDEX ON bid (auction);
     CREATE INDEX ON bid (price, (date_time / 10000))";

const QUERIES: [(&str, &str); 4] = [
    (
        "q3_local_items",
        "SELECT p.name, p.city, p.state, a.id FROM auction a JOIN person p ON p.id = a.seller
         WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA')",
    ),
    (
        "q4_average_price",
        "SELECT category, avg(final) AS average FROM (
             SELECT a.id, a.category, max(b.price) AS final FROM auction a JOIN bid b ON b.auction = a.id
             WHERE b.date_time BETWEEN a.date_time AND a.expires GROUP BY a.id, a.category) winning
         GROUP BY category",
    ),
    (
        "q5_hot_items",
        "WITH bids AS (SELECT auction, count(*) AS number FROM bid GROUP BY auction)
         SELECT auction, number FROM bids WHERE number = (SELECT max(number) FROM bids)",
    ),
    (
        "q7_highest_bid",
        "SELECT b.auction, b.bidder, b.price, h.period FROM bid b JOIN (
             SELECT date_time / 10000 AS period, max(price) AS price FROM bid GROUP BY date_time / 10000) h
         ON b.price = h.price AND b.date_time / 10000 = h.period",
    ),
];

/// Each batch is one transaction.
const BATCHES_PER_SECOND: u32 = 20;
/// Freshness that is wanted of 99 % of the batches.
const FRESH: Duration = Duration::from_secs(1);
/// How often the reader looks: the resolution of the figures.
const LOOK: Duration = Duration::from_millis(1);

pub async fn run(plan: &Plan) {
    let server = stage::server();
    let pooler = stage::pooler(&server, 20, true, 2);
    let client = stage::pooled(&pooler).await;
    stage::run(&client, TABLES).await;
    for (name, query) in QUERIES {
        stage::run(
            &client,
            &format!("CREATE STREAM TABLE {name} WITH (refresh_mode = 'incremental') AS {query}"),
        )
        .await;
    }
    let mut table = Table::new(
        &format!(
            "Nexmark, {} s per rate, {BATCHES_PER_SECOND} batches/s through the pooler: from commit to visible in all 4 stream tables (ms)",
            plan.event_time.as_secs()
        ),
        &["events/s", "written/s", "p50", "p90", "p99", "max"],
    );
    // The same events in every run.
    let mut events = EventGenerator::new(NexmarkConfig {
        base_time: 1_700_000_000_000,
        ..NexmarkConfig::default()
    });
    // The first refreshes plan and cache.
    load(&pooler, &mut events, plan.event_rates[0], FRESH * 2).await;
    let mut highest = None;
    for &rate in &plan.event_rates {
        let (written, fresh) = load(&pooler, &mut events, rate, plan.event_time).await;
        let p99 = percentile(&fresh, 0.99);
        table.row(&[
            rate.to_string(),
            format!("{written:.0}"),
            ms(percentile(&fresh, 0.5)),
            ms(percentile(&fresh, 0.9)),
            ms(p99),
            ms(percentile(&fresh, 1.0)),
        ]);
        // A writer that is held up is no such rate.
        if p99 >= FRESH || written < f64::from(rate) * 0.95 {
            break;
        }
        highest = Some(rate);
    }
    table.print();
    match highest {
        Some(rate) => println!("  The highest rate with p99 below 1 s: {rate} events/s."),
        None => println!("  No rate with p99 below 1 s."),
    }
    for (name, query) in QUERIES {
        stage::assert_equal(&client, name, query).await;
    }
}

/// Writes at a rate for some time. Returns the rate there was, and per batch the time until all stream
/// tables had it.
async fn load(
    pooler: &Pooler,
    events: &mut EventGenerator,
    rate: u32,
    time: Duration,
) -> (f64, Vec<Duration>) {
    let writer = stage::pooled(pooler).await;
    let (commits, committed) = mpsc::unbounded_channel();
    let reader = tokio::spawn(watch(stage::pooled(pooler).await, committed));
    let per_batch = rate / BATCHES_PER_SECOND;
    let batches = u32::try_from(time.as_secs()).expect("seconds") * BATCHES_PER_SECOND;
    let mut clock = tokio::time::interval(Duration::from_secs(1) / BATCHES_PER_SECOND);
    let began = Instant::now();
    for _ in 0..batches {
        let sql = batch(events.by_ref().take(per_batch as usize));
        clock.tick().await;
        let id = write(&writer, &sql).await;
        commits.send((id, Instant::now())).expect("the reader");
    }
    // The first tick is at once.
    clock.tick().await;
    let written = f64::from(batches * per_batch) / began.elapsed().as_secs_f64();
    drop(commits);
    (written, reader.await.expect("the reader"))
}

/// The INSERTs of some events, and the id of their transaction.
fn batch(events: impl Iterator<Item = Event>) -> String {
    let text = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let [mut persons, mut auctions, mut bids] = [const { String::new() }; 3];
    for event in events {
        let written = match event {
            Event::Person(p) => write!(
                persons,
                ",({},{},{},{},{},{},{})",
                p.id,
                text(&p.name),
                text(&p.email_address),
                text(&p.city),
                text(&p.state),
                p.date_time,
                text(&p.extra)
            ),
            Event::Auction(a) => write!(
                auctions,
                ",({},{},{},{},{},{},{},{},{})",
                a.id,
                text(&a.item_name),
                a.initial_bid,
                a.reserve,
                a.date_time,
                a.expires,
                a.seller,
                a.category,
                text(&a.extra)
            ),
            Event::Bid(b) => write!(
                bids,
                ",({},{},{},{},{},{},{})",
                b.auction,
                b.bidder,
                b.price,
                text(&b.channel),
                text(&b.url),
                b.date_time,
                text(&b.extra)
            ),
        };
        written.expect("writing to a String");
    }
    let mut sql = String::new();
    for (table, rows) in [("person", persons), ("auction", auctions), ("bid", bids)] {
        if let Some(rows) = rows.strip_prefix(',') {
            write!(sql, "INSERT INTO {table} VALUES {rows};").expect("writing to a String");
        }
    }
    sql + "SELECT pg_current_xact_id()"
}

/// Runs a batch in one transaction and returns its id.
async fn write(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.expect("a batch");
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.expect("the transaction's id").to_owned()
}

/// Waits, for each transaction, until it is in the snapshots of all stream tables.
async fn watch(
    client: Client,
    mut committed: mpsc::UnboundedReceiver<(String, Instant)>,
) -> Vec<Duration> {
    let look = client
        .prepare(
            "SELECT bool_and(pg_visible_in_snapshot($1::text::xid8, frontier_snapshot)) FROM pgtrickle.catalog",
        )
        .await
        .expect("prepare");
    let mut fresh = Vec::new();
    while let Some((id, since)) = committed.recv().await {
        while !client
            .query_one(&look, &[&id])
            .await
            .expect("look")
            .get::<_, bool>(0)
        {
            assert!(
                since.elapsed() < Duration::from_secs(300),
                "the stream tables do not follow"
            );
            tokio::time::sleep(LOOK).await;
        }
        fresh.push(since.elapsed());
    }
    fresh
}
