//! One writer: random transactions from a seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::schema::ACCOUNTS;

/// A source of random transactions. The same seed and number give the same statements.
pub(crate) struct Writer {
    rng: StdRng,
    number: u64,
    prepared: u64,
    /// A prepared transaction whose end was not confirmed: it holds its locks until somebody ends it.
    unfinished: Option<String>,
}

impl Writer {
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed.wrapping_mul(1000) + number),
            number,
            prepared: 0,
            unfinished: None,
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Runs one transaction. After an error the connection may be in a failed block.
    pub(crate) async fn transaction(&mut self, client: &Client) -> Result<(), Error> {
        if let Some(name) = &self.unfinished {
            match client
                .batch_execute(&format!("COMMIT PREPARED '{name}'"))
                .await
            {
                Err(error) if error.code() != Some(&SqlState::UNDEFINED_OBJECT) => {
                    return Err(error);
                }
                _ => self.unfinished = None,
            }
        }
        match self.rng.random_range(0..100) {
            0..45 => self.single(client).await,
            45..75 => self.block(client).await,
            75..88 => self.savepoints(client).await,
            88..90 => self.late_commit(client).await,
            90..94 => self.two_phase(client).await,
            94..99 => self.one_message(client).await,
            _ => self.truncate(client).await,
        }
    }

    async fn single(&mut self, client: &Client) -> Result<(), Error> {
        let sql = self.statement();
        if self.rng.random_bool(0.5) {
            client.batch_execute(&sql).await
        } else {
            client.execute(&sql, &[]).await.map(drop)
        }
    }

    async fn block(&mut self, client: &Client) -> Result<(), Error> {
        let isolation = [
            "READ COMMITTED",
            "READ COMMITTED",
            "READ COMMITTED",
            "REPEATABLE READ",
            "SERIALIZABLE",
        ][self.rng.random_range(0..5)];
        client
            .batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}"))
            .await?;
        for _ in 0..self.rng.random_range(1..6) {
            self.single(client).await?;
        }
        client.batch_execute(self.ending()).await
    }

    async fn savepoints(&mut self, client: &Client) -> Result<(), Error> {
        client.batch_execute("BEGIN").await?;
        for _ in 0..self.rng.random_range(1..5) {
            client.batch_execute("SAVEPOINT s").await?;
            self.single(client).await?;
            if self.rng.random_bool(0.2) {
                // An error inside a subtransaction, undone with it.
                let _ = client
                    .batch_execute("INSERT INTO customers SELECT * FROM customers")
                    .await;
                client.batch_execute("ROLLBACK TO s").await?;
            } else if self.rng.random_bool(0.4) {
                client.batch_execute("ROLLBACK TO s").await?;
            } else {
                client.batch_execute("RELEASE s").await?;
            }
        }
        client.batch_execute(self.ending()).await
    }

    /// Takes its transaction id early and commits long after others that began later.
    async fn late_commit(&mut self, client: &Client) -> Result<(), Error> {
        client.batch_execute("BEGIN").await?;
        self.single(client).await?;
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(100..1500))).await;
        if self.rng.random_bool(0.5) {
            self.single(client).await?;
        }
        client.batch_execute(self.ending()).await
    }

    async fn two_phase(&mut self, client: &Client) -> Result<(), Error> {
        client.batch_execute("BEGIN").await?;
        self.single(client).await?;
        self.prepared += 1;
        let name = format!(
            "w{}_{}_{}",
            self.number,
            self.prepared,
            self.rng.random_range(0..u32::MAX)
        );
        self.unfinished = Some(name.clone());
        client
            .batch_execute(&format!("PREPARE TRANSACTION '{name}'"))
            .await?;
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..100))).await;
        let end = if self.rng.random_bool(0.7) {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        client
            .batch_execute(&format!("{end} PREPARED '{name}'"))
            .await?;
        self.unfinished = None;
        Ok(())
    }

    /// Several statements in one Query message: one implicit transaction.
    async fn one_message(&mut self, client: &Client) -> Result<(), Error> {
        let texts: Vec<String> = (0..self.rng.random_range(2..5))
            .map(|_| self.statement())
            .collect();
        client.batch_execute(&texts.join(";")).await
    }

    /// Gives up soon: a waiting TRUNCATE makes all others queue behind it.
    async fn truncate(&mut self, client: &Client) -> Result<(), Error> {
        let what = [
            "events",
            "items",
            "nums",
            "parted_1",
            "parted",
            "orders, items",
        ][self.rng.random_range(0..6)];
        client
            .batch_execute("BEGIN; SET LOCAL lock_timeout = '80ms'")
            .await?;
        if self.rng.random_bool(0.5) {
            self.single(client).await?;
        }
        match client.batch_execute(&format!("TRUNCATE {what}")).await {
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                return client.batch_execute("ROLLBACK").await;
            }
            other => other?,
        }
        if self.rng.random_bool(0.5) {
            self.single(client).await?;
        }
        client.batch_execute(self.ending()).await
    }

    fn ending(&mut self) -> &'static str {
        if self.rng.random_bool(0.8) {
            "COMMIT"
        } else {
            "ROLLBACK"
        }
    }

    /// One DML statement. Deletes by a remainder keep the tables small.
    fn statement(&mut self) -> String {
        let r = &mut self.rng;
        let rows = if r.random_bool(0.05) {
            80
        } else {
            r.random_range(1..4)
        };
        let (any, region, customer) = (
            r.random_range(0..1000),
            r.random_range(0..5),
            r.random_range(1..61),
        );
        match r.random_range(0..26) {
            0..4 => format!(
                "INSERT INTO orders (customer_id, amount, note) SELECT 1 + ({any} + i) % 63, \
                 nullif(({any} + i) % 200, 7), CASE WHEN i % 3 = 0 THEN NULL ELSE 'n{any}' END FROM generate_series(1, {rows}) i"
            ),
            4 => format!(
                "UPDATE orders SET amount = amount + 1.5 WHERE id % 67 = {}",
                any % 67
            ),
            5 => format!(
                "UPDATE orders SET customer_id = {customer}, note = 'moved' WHERE id % 71 = {}",
                any % 71
            ),
            6 => format!("DELETE FROM orders WHERE id % 23 = {}", any % 23),
            7 => format!(
                "UPDATE customers SET region = (ARRAY['north','south','east','west',NULL])[{}] WHERE id = {customer}",
                region + 1
            ),
            8 => format!(
                "UPDATE customers SET active = NOT active, name = 'c{any}' WHERE id = {customer}"
            ),
            9 => format!("DELETE FROM customers WHERE id = {customer}"),
            10 => format!(
                "INSERT INTO customers VALUES ({customer}, 'north', 'back', true) \
                 ON CONFLICT (id) DO UPDATE SET region = excluded.region, name = 'c' || customers.id"
            ),
            11 | 12 => format!(
                "INSERT INTO items SELECT (SELECT max(id) FROM orders) - {} , 's{}', {}, {}.25 FROM generate_series(1, {rows})",
                any % 50,
                any % 17,
                any % 5,
                any % 9
            ),
            13 => format!(
                "UPDATE items SET qty = qty + 1 WHERE sku = 's{}' AND qty < {}",
                any % 17,
                any % 4
            ),
            // One of several identical rows.
            14 => "DELETE FROM items WHERE ctid IN (SELECT ctid FROM items LIMIT 3)".to_owned(),
            15 => format!("DELETE FROM items WHERE sku = 's{}'", any % 17),
            16 | 17 => format!(
                "INSERT INTO events SELECT ({any} * i) % 150, nullif(i % 30, 4), nullif('t' || {any} % 8, 't3'), {any} / 8.0 \
                 FROM generate_series(1, {rows}) i"
            ),
            18 => format!(
                "UPDATE events SET tag = 't{}', v = v - 1, f = -f WHERE k = {}",
                any % 9,
                any % 150
            ),
            19 => format!("DELETE FROM events WHERE k % 29 = {}", any % 29),
            20 => format!(
                "UPDATE nums SET b = CASE WHEN a % 2 = 0 THEN b + 0.000 ELSE trim_scale(b) END WHERE a = {}",
                any % 20
            ),
            21 => format!(
                "INSERT INTO nums SELECT {any} % 20, {}.{}0, date '2024-01-01' + {any} % 9, '{{\"n\": {}}}' FROM generate_series(1, {rows})",
                any % 3,
                any % 4,
                any % 6
            ),
            22 => format!(
                "DELETE FROM nums WHERE a = {} AND d > '2024-01-05'",
                any % 20
            ),
            23 => match any % 3 {
                0 => format!(
                    "UPDATE parted SET part = {} , v = v + 1 WHERE id % 31 = {}",
                    any % 6,
                    any % 31
                ),
                1 => format!(
                    "INSERT INTO parted SELECT {any} + i, i % 6, i FROM generate_series(1, {rows}) i"
                ),
                _ => format!("DELETE FROM parted WHERE id % 19 = {}", any % 19),
            },
            // A transfer: locks in the order of the key, and keeps the sum.
            24 => {
                let amount = r.random_range(1..500);
                let (a, b) = (1 + any % ACCOUNTS, 1 + (any / 7) % ACCOUNTS);
                format!(
                    "UPDATE accounts SET balance = balance + CASE id WHEN {a} THEN -{amount} ELSE {amount} END \
                     WHERE id IN ({a}, {b}) AND {a} <> {b}"
                )
            }
            _ => format!(
                "WITH gone AS (DELETE FROM events WHERE k = {} RETURNING *), \
                 kept AS (INSERT INTO events SELECT k + 1, v, tag, f FROM gone RETURNING 1) \
                 INSERT INTO nums SELECT v, f::numeric, NULL, NULL FROM gone",
                any % 150
            ),
        }
    }
}
