//! TPC-H for tests and benches: the schema with the indexes its foreign keys call for, dbgen's data, the 22 queries with the
//! parameters of the specification's validation run, and batches that change several tables at once.

use std::fmt::Display;
use std::io::Cursor;

use futures_util::{SinkExt, pin_mut};
use tokio_postgres::{Client, Error};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};

/// Name and text of each query. Where the specification's ORDER BY leaves ties at a LIMIT, the key is added.
pub const QUERIES: [(&str, &str); 22] = [
    ("q01", include_str!("../queries/q01.sql")),
    ("q02", include_str!("../queries/q02.sql")),
    ("q03", include_str!("../queries/q03.sql")),
    ("q04", include_str!("../queries/q04.sql")),
    ("q05", include_str!("../queries/q05.sql")),
    ("q06", include_str!("../queries/q06.sql")),
    ("q07", include_str!("../queries/q07.sql")),
    ("q08", include_str!("../queries/q08.sql")),
    ("q09", include_str!("../queries/q09.sql")),
    ("q10", include_str!("../queries/q10.sql")),
    ("q11", include_str!("../queries/q11.sql")),
    ("q12", include_str!("../queries/q12.sql")),
    ("q13", include_str!("../queries/q13.sql")),
    ("q14", include_str!("../queries/q14.sql")),
    ("q15", include_str!("../queries/q15.sql")),
    ("q16", include_str!("../queries/q16.sql")),
    ("q17", include_str!("../queries/q17.sql")),
    ("q18", include_str!("../queries/q18.sql")),
    ("q19", include_str!("../queries/q19.sql")),
    ("q20", include_str!("../queries/q20.sql")),
    ("q21", include_str!("../queries/q21.sql")),
    ("q22", include_str!("../queries/q22.sql")),
];

const SCHEMA: &str = "
    CREATE TABLE region (r_regionkey int PRIMARY KEY, r_name char(25) NOT NULL, r_comment varchar(152));
    CREATE TABLE nation (n_nationkey int PRIMARY KEY, n_name char(25) NOT NULL, n_regionkey int NOT NULL,
        n_comment varchar(152));
    CREATE TABLE part (p_partkey int PRIMARY KEY, p_name varchar(55) NOT NULL, p_mfgr char(25) NOT NULL,
        p_brand char(10) NOT NULL, p_type varchar(25) NOT NULL, p_size int NOT NULL, p_container char(10) NOT NULL,
        p_retailprice numeric(15,2) NOT NULL, p_comment varchar(23) NOT NULL);
    CREATE TABLE supplier (s_suppkey int PRIMARY KEY, s_name char(25) NOT NULL, s_address varchar(40) NOT NULL,
        s_nationkey int NOT NULL, s_phone char(15) NOT NULL, s_acctbal numeric(15,2) NOT NULL,
        s_comment varchar(101) NOT NULL);
    CREATE TABLE partsupp (ps_partkey int NOT NULL, ps_suppkey int NOT NULL, ps_availqty int NOT NULL,
        ps_supplycost numeric(15,2) NOT NULL, ps_comment varchar(199) NOT NULL, PRIMARY KEY (ps_partkey, ps_suppkey));
    CREATE TABLE customer (c_custkey int PRIMARY KEY, c_name varchar(25) NOT NULL, c_address varchar(40) NOT NULL,
        c_nationkey int NOT NULL, c_phone char(15) NOT NULL, c_acctbal numeric(15,2) NOT NULL,
        c_mktsegment char(10) NOT NULL, c_comment varchar(117) NOT NULL);
    CREATE TABLE orders (o_orderkey bigint PRIMARY KEY, o_custkey int NOT NULL, o_orderstatus char(1) NOT NULL,
        o_totalprice numeric(15,2) NOT NULL, o_orderdate date NOT NULL, o_orderpriority char(15) NOT NULL,
        o_clerk char(15) NOT NULL, o_shippriority int NOT NULL, o_comment varchar(79) NOT NULL);
    CREATE TABLE lineitem (l_orderkey bigint NOT NULL, l_partkey int NOT NULL, l_suppkey int NOT NULL,
        l_linenumber int NOT NULL, l_quantity numeric(15,2) NOT NULL, l_extendedprice numeric(15,2) NOT NULL,
        l_discount numeric(15,2) NOT NULL, l_tax numeric(15,2) NOT NULL, l_returnflag char(1) NOT NULL,
        l_linestatus char(1) NOT NULL, l_shipdate date NOT NULL, l_commitdate date NOT NULL, l_receiptdate date NOT NULL,
        l_shipinstruct char(25) NOT NULL, l_shipmode char(10) NOT NULL, l_comment varchar(44) NOT NULL,
        PRIMARY KEY (l_orderkey, l_linenumber));";

const INDEXES: &str = "
    CREATE INDEX ON nation (n_regionkey);
    CREATE INDEX ON supplier (s_nationkey);
    CREATE INDEX ON partsupp (ps_suppkey);
    CREATE INDEX ON customer (c_nationkey);
    CREATE INDEX ON orders (o_custkey);
    CREATE INDEX ON lineitem (l_partkey, l_suppkey);
    CREATE INDEX ON lineitem (l_suppkey);
    ANALYZE;";

/// Makes the tables in the client's search path and fills them at scale factor `scale` (1: 6 million lines).
///
/// # Errors
/// Those of the server.
pub async fn load(client: &Client, scale: f64) -> Result<(), Error> {
    client.batch_execute(SCHEMA).await?;
    copy(client, "region", RegionGenerator::new(scale, 1, 1).iter()).await?;
    copy(client, "nation", NationGenerator::new(scale, 1, 1).iter()).await?;
    copy(client, "part", PartGenerator::new(scale, 1, 1).iter()).await?;
    copy(
        client,
        "supplier",
        SupplierGenerator::new(scale, 1, 1).iter(),
    )
    .await?;
    copy(
        client,
        "partsupp",
        PartSuppGenerator::new(scale, 1, 1).iter(),
    )
    .await?;
    copy(
        client,
        "customer",
        CustomerGenerator::new(scale, 1, 1).iter(),
    )
    .await?;
    copy(client, "orders", OrderGenerator::new(scale, 1, 1).iter()).await?;
    copy(
        client,
        "lineitem",
        LineItemGenerator::new(scale, 1, 1).iter(),
    )
    .await?;
    client.batch_execute(INDEXES).await
}

async fn copy<R: Display>(
    client: &Client,
    table: &str,
    rows: impl Iterator<Item = R>,
) -> Result<(), Error> {
    let sink = client
        .copy_in(&format!("COPY {table} FROM STDIN WITH (DELIMITER '|')"))
        .await?;
    pin_mut!(sink);
    let mut buffer = String::new();
    for row in rows {
        // dbgen ends each field with the delimiter, the last one too.
        let row = row.to_string();
        buffer.push_str(row.trim_end_matches('|'));
        buffer.push('\n');
        if buffer.len() > 1 << 16 {
            sink.send(Cursor::new(std::mem::take(&mut buffer).into_bytes()))
                .await?;
        }
    }
    sink.send(Cursor::new(buffer.into_bytes())).await?;
    sink.finish().await?;
    Ok(())
}

/// The statements of batch number `round`, one transaction: of all orders one in `every` comes with its lines (RF1), and as
/// many go (RF2); of customers, parts, offers and suppliers one in `every` changes in the columns the queries look at.
/// `every` 0: a single order comes, and nothing else.
pub fn batch(round: u32, every: u32) -> Vec<String> {
    let base = 100_000_000_u64 * u64::from(round + 1);
    // Keys are sparse (8 of each 32): picked by a hash, so that each batch finds others.
    let pick = |key: &str, salt: u32| {
        format!(
            "abs(hashint8extended({key}::bigint, {})) % {every} = 0",
            round * 10 + salt
        )
    };
    let chosen = if every == 0 {
        format!(
            "o_orderkey = (SELECT max(o_orderkey) FROM orders WHERE o_orderkey < 100000000 - {round})"
        )
    } else {
        format!("o_orderkey < 100000000 AND {}", pick("o_orderkey", 0))
    };
    let lines = chosen.replace("o_orderkey", "l_orderkey").replace(
        "max(l_orderkey) FROM orders WHERE l_orderkey",
        "max(o_orderkey) FROM orders WHERE o_orderkey",
    );
    let mut statements = vec![
        format!(
            "INSERT INTO lineitem SELECT l_orderkey + {base}, l_partkey, l_suppkey, l_linenumber, l_quantity + 1, l_extendedprice,
                l_discount, l_tax, l_returnflag, l_linestatus, l_shipdate + 1, l_commitdate, l_receiptdate, l_shipinstruct,
                l_shipmode, l_comment FROM lineitem WHERE {lines}"
        ),
        format!(
            "INSERT INTO orders SELECT o_orderkey + {base}, o_custkey, o_orderstatus, o_totalprice + 1, o_orderdate, o_orderpriority,
                o_clerk, o_shippriority, o_comment FROM orders WHERE {chosen}"
        ),
    ];
    if every > 0 {
        statements.push(format!(
            "DELETE FROM lineitem WHERE l_orderkey < 100000000 AND {}",
            pick("l_orderkey", 1)
        ));
        statements.push(format!(
            "DELETE FROM orders WHERE o_orderkey < 100000000 AND {}",
            pick("o_orderkey", 1)
        ));
        statements.push(format!(
            "UPDATE customer SET c_acctbal = c_acctbal + 100,
                c_mktsegment = CASE c_mktsegment WHEN 'BUILDING' THEN 'MACHINERY' ELSE 'BUILDING' END WHERE {}",
            pick("c_custkey", 2)
        ));
        statements.push(format!(
            "UPDATE part SET p_size = p_size % 50 + 1, p_retailprice = p_retailprice + 1 WHERE {}",
            pick("p_partkey", 3)
        ));
        statements.push(format!(
            "UPDATE partsupp SET ps_supplycost = ps_supplycost + 1, ps_availqty = ps_availqty + 10 WHERE {}",
            pick("ps_partkey * 100000::bigint + ps_suppkey", 4)
        ));
        statements.push(format!(
            "UPDATE supplier SET s_acctbal = s_acctbal + 1, s_nationkey = (s_nationkey + 1) % 25 WHERE {}",
            pick("s_suppkey", 5)
        ));
    }
    statements
}
