//! The commands that change what the pooler does.

use std::sync::Arc;
use std::time::Duration;

use super::command::Target;
use super::show::Row;
use super::{Dialect, Failure};
use crate::config::model::Role;
use crate::net::threads::{Pooler, ThreadContext};
use crate::pool::address::Address;
use crate::pool::shared::PoolShared;
use crate::pool::statistics::Phase;

/// Between looks at whether what is waited for has happened.
const LOOK: Duration = Duration::from_millis(10);

type Pools = Vec<Arc<PoolShared>>;

/// The pools that are meant.
fn chosen(pooler: &Pooler, target: &Target) -> Result<Pools, Failure> {
    let present = pooler.pools();
    let pools = present.iter().filter(|pool| {
        let identity = &pool.identity;
        match target {
            Target::All => true,
            Target::Database(name) => *name == identity.database,
            Target::Pool(name, user) => *name == identity.database && *user == identity.user,
        }
    });
    let pools: Pools = pools.cloned().collect();
    if pools.is_empty() && *target != Target::All {
        return Err(Failure::NoSuchPool(target.clone()));
    }
    Ok(pools)
}

/// Stops handing out server connections, waits until those in use have been given back, and closes
/// them.
pub(super) async fn pause(
    thread: &ThreadContext,
    target: &Target,
    dialect: Dialect,
) -> Result<(), Failure> {
    let pools = chosen(&thread.pooler, target)?;
    let already = !pools.is_empty() && pools.iter().all(|pool| pool.gate.is_paused());
    if already && dialect == Dialect::Pgbouncer {
        return Err(Failure::Usage("already suspended/paused"));
    }
    pools.iter().for_each(|pool| pool.gate.pause());
    // Whoever passed the gate before has its connection, or a slot, when its thread has answered.
    thread.pooler.ask(|_| ()).await;
    while !pools.iter().all(|pool| is_quiet(pool)) {
        if pools.iter().any(|pool| !pool.gate.is_paused()) {
            return Err(Failure::Usage("resumed before all connections were free"));
        }
        tokio::time::sleep(LOOK).await;
    }
    close_idle(&thread.pooler, &pools).await;
    Ok(())
}

fn is_quiet(pool: &PoolShared) -> bool {
    pool.addresses.iter().all(|address| {
        let connections = address.statistics.connections();
        connections
            .iter()
            .all(|connection| connection.own || connection.phase() == Phase::Idle)
    })
}

async fn close_idle(pooler: &Pooler, pools: &Pools) {
    let indices: Vec<usize> = pools.iter().map(|pool| pool.index).collect();
    pooler
        .ask(move |thread| {
            for pool in indices.iter().filter_map(|&index| thread.pool(index)) {
                pool.close_idle(thread);
            }
        })
        .await;
}

/// Lets no transaction begin. Those that run go on.
pub(super) async fn suspend(thread: &ThreadContext) {
    thread
        .pooler
        .pools()
        .iter()
        .for_each(|pool| pool.gate.suspend());
    thread.pooler.ask(|_| ()).await;
}

/// Ends a pause: those who wait are served in their order.
pub(super) async fn resume(
    thread: &ThreadContext,
    target: &Target,
    dialect: Dialect,
) -> Result<(), Failure> {
    let pools = chosen(&thread.pooler, target)?;
    if dialect == Dialect::Pgbouncer && !pools.iter().any(|pool| pool.gate.is_shut()) {
        return Err(Failure::Usage("pooler is not paused/suspended"));
    }
    for pool in &pools {
        pool.gate.resume(thread.pooler.now());
    }
    let indices: Vec<usize> = pools.iter().map(|pool| pool.index).collect();
    thread
        .pooler
        .ask(move |thread| {
            for pool in indices.iter().filter_map(|&index| thread.pool(index)) {
                pool.resume(thread);
            }
        })
        .await;
    Ok(())
}

/// Whether new clients of a database are let in.
pub(super) fn set_disabled(
    thread: &ThreadContext,
    database: &str,
    disabled: bool,
) -> Result<(), Failure> {
    let pools = chosen(&thread.pooler, &Target::Database(database.to_owned()))?;
    pools
        .iter()
        .for_each(|pool| pool.gate.set_disabled(disabled));
    Ok(())
}

/// Drops clients and server connections at once; the pools stay paused.
pub(super) async fn kill(thread: &ThreadContext, target: &Target) -> Result<(), Failure> {
    let pools = chosen(&thread.pooler, target)?;
    pools.iter().for_each(|pool| pool.gate.pause());
    let identities: Vec<_> = pools.iter().map(|pool| pool.identity.clone()).collect();
    thread
        .pooler
        .ask(move |thread| thread.kill(|_, who| identities.contains(&who.identity)))
        .await;
    close_idle(&thread.pooler, &pools).await;
    Ok(())
}

pub(super) async fn kill_client(thread: &ThreadContext, id: u64) -> Result<(), Failure> {
    let killed = thread
        .pooler
        .ask(move |thread| thread.kill(|session, _| session == id))
        .await;
    if killed.iter().sum::<usize>() == 0 {
        return Err(Failure::Usage("client not found"));
    }
    Ok(())
}

/// Has every server connection closed as soon as it is free.
pub(super) async fn reconnect(thread: &ThreadContext, target: &Target) -> Result<(), Failure> {
    let pools = chosen(&thread.pooler, target)?;
    for address in pools.iter().flat_map(|pool| &pool.addresses) {
        address.health.renew();
    }
    close_idle(&thread.pooler, &pools).await;
    Ok(())
}

/// Waits until the connections that RECONNECT is about are closed.
pub(super) async fn wait_close(thread: &ThreadContext, target: &Target) -> Result<(), Failure> {
    let pools = chosen(&thread.pooler, target)?;
    let addresses = || pools.iter().flat_map(|pool| &pool.addresses);
    while addresses().any(Address::has_outdated) {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Bans the replicas on a host. A row for each that was not banned before.
pub(super) fn ban(thread: &ThreadContext, host: &str, seconds: u64) -> Vec<Row> {
    let now = thread.pooler.now();
    on_host(&thread.pooler, host, |address| {
        // A primary has nobody to stand in for it.
        let bannable = address.role() == Role::Replica && address.health.banned(now).is_none();
        if bannable {
            address.health.ban(now, Duration::from_secs(seconds));
        }
        bannable
    })
}

/// Lifts the bans on a host. A row for each.
pub(super) fn unban(thread: &ThreadContext, host: &str) -> Vec<Row> {
    let now = thread.pooler.now();
    on_host(&thread.pooler, host, |address| {
        let banned = address.health.banned(now).is_some();
        if banned {
            address.health.unban();
        }
        banned
    })
}

fn on_host(pooler: &Pooler, host: &str, act: impl Fn(&Address) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for pool in pooler.pools().iter() {
        for address in &pool.addresses {
            if address.server.host == host && act(address) {
                let identity = &pool.identity;
                let values = [
                    identity.database.as_str(),
                    identity.user.as_str(),
                    address.role_name(),
                    host,
                ];
                rows.push(values.map(|value| Some(value.to_owned())).into());
            }
        }
    }
    rows
}
