//! Asks the servers of a pool, on connections of the pooler's own, how far they have come: for replicas
//! that lag to be left out, and for clients to read what they have written.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::address::Address;
use super::replay::Seen;
use super::shared::PoolShared;
use super::slots::Slot;
use super::wal::ServerState;
use crate::config::model::Role;
use crate::error::Error;
use crate::net::server::Server;
use crate::net::threads::ThreadContext;

/// Between two looks at a server; less where the limit of the lag is short.
const PACE: Duration = Duration::from_secs(1);
const FASTEST: Duration = Duration::from_millis(50);

/// Begins to watch the servers of a pool, each in a task of its own, until the pool is retired.
pub fn begin(thread: &Rc<ThreadContext>, pool: &Arc<PoolShared>) {
    let limit = pool.settings.max_replica_lag;
    let pace = limit.map_or(PACE, |limit| (limit / 2).clamp(FASTEST, PACE));
    for address in &pool.addresses {
        if address.server.role != Role::Mirror && pool.has_replicas(address.shard) {
            let watch = Watch {
                thread: thread.clone(),
                pool: pool.clone(),
                at: address.id,
                server: None,
                complained: false,
            };
            tokio::task::spawn_local(watch.run(pace));
        }
    }
}

struct Watch {
    thread: Rc<ThreadContext>,
    pool: Arc<PoolShared>,
    at: usize,
    server: Option<Box<Server>>,
    /// It has been said that the server does not tell.
    complained: bool,
}

impl Watch {
    async fn run(mut self, pace: Duration) {
        while !self.pool.is_retired() {
            if self.pool.gate.is_shut() || self.pool.awaits_client() {
                self.server = None;
            } else if let Err(error) = self.look().await {
                let address = self.address();
                address.replay.forget();
                if !std::mem::replace(&mut self.complained, true) {
                    let name = &self.address().name;
                    log::warn!("{name} does not say how far it has replayed: {error}");
                }
                self.server = None;
            } else {
                self.complained = false;
            }
            tokio::time::sleep(pace).await;
        }
    }

    fn address(&self) -> &Address {
        &self.pool.addresses[self.at]
    }

    async fn look(&mut self) -> Result<(), Error> {
        let generation = self.address().health.generation();
        let limit = self.pool.user.connect_timeout;
        let mut server = match self.server.take() {
            Some(server) if server.generation == generation => server,
            _ => {
                let slot = Slot::beyond(&self.pool, self.at);
                let dialler = self.thread.pooler.dialler();
                let connecting = Server::connect(slot, &dialler, self.thread.now.get());
                timeout(limit, connecting)
                    .await
                    .map_err(|_| Error::ConnectTimeout)??
            }
        };
        let now = self.thread.pooler.now();
        let limit = self.thread.config().general.healthcheck_timeout;
        let state = timeout(limit, server.ask_state())
            .await
            .map_err(|_| Error::FailedHealthCheck)??;
        self.server = Some(server);
        self.note(now, &state);
        Ok(())
    }

    fn note(&self, now: u64, state: &ServerState) {
        let address = self.address();
        self.pool.note_standby(address, state.in_recovery);
        let history = &self.pool.histories[address.shard];
        if address.role() == Role::Primary && !state.in_recovery {
            history.note(now, state);
        }
        let behind = history.behind(now, state.position);
        address.replay.note(Seen {
            at: now,
            position: state.position,
            behind: behind.map(|(behind, _)| behind),
        });
        let Some(limit) = self.pool.settings.max_replica_lag else {
            return;
        };
        // Of one that has been behind from the beginning nobody knows for how long.
        let lagging = address.role() == Role::Replica
            && behind.is_some_and(|(behind, at_least)| {
                at_least || u128::from(behind) > limit.as_millis()
            });
        if address.replay.note_lagging(lagging) {
            let (name, user) = (&address.name, &self.pool.identity.user);
            let behind = behind.map_or(0, |(behind, _)| behind);
            if lagging {
                log::warn!(
                    "server {name} (user {user}) lags by {behind} ms or more: reads go elsewhere"
                );
            } else {
                log::info!("server {name} (user {user}) has caught up");
            }
        }
    }
}
