//! Reload: from a configuration that has been read and found good to pools that follow it.
//!
//! A pool whose settings are unchanged stays as it is. Any other is replaced as a whole: the old one is
//! retired, sessions go over to the new one between their transactions, and its connections are closed
//! as they become free. Statistics, bans and what administrators have ordered go over, too.

use std::sync::Arc;

use super::pool_handle::PoolHandle;
use super::threads::Pooler;
use crate::config::model::{AuthQuery, AuthType, Config, Pool, PoolMode, Timeouts, User};
use crate::plugins::PoolIdentity;
use crate::pool::limits::{Seat, Tallies};
use crate::pool::shared::PoolShared;
use crate::pool::statistics::Ids;

/// Reads the configuration again.
pub type Load = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// The pools of a configuration: those of `present` that it leaves as they are, and new ones.
pub fn pools(config: &Config, present: &[Arc<PoolShared>], fixed: &Fixed) -> Vec<Arc<PoolShared>> {
    let mut pools = Vec::new();
    for (database, pool) in &config.pools {
        let asking = pool
            .auth_query
            .as_ref()
            .map(|query| (auth_query_user(config, query), true));
        let users = pool.users.iter().cloned().map(|user| (user, false));
        let others = others(database, pool, present).map(|user| (user, false));
        for (user, asks_auth_query) in users.chain(asking).chain(others) {
            let identity = PoolIdentity {
                database: database.clone(),
                user: user.username.clone(),
            };
            let predecessor = present
                .iter()
                .find(|pool| *pool.identity == identity && pool.asks_auth_query == asks_auth_query);
            let is_listed = pool.users.contains(&user);
            let of_other_user = !asks_auth_query && !is_listed;
            if let Some(same) = predecessor
                && same.of_other_user == of_other_user
                && is_same(same, &user, pool)
            {
                pools.push(same.clone());
                continue;
            }
            let shared = PoolShared::new(
                identity,
                user,
                pool.clone(),
                fixed,
                predecessor.map(|predecessor| &**predecessor),
            );
            let shared = Arc::new(if asks_auth_query {
                shared.for_auth_query()
            } else if of_other_user {
                shared.for_other_user()
            } else {
                shared
            });
            shared.join();
            pools.push(shared);
        }
    }
    pools
}

/// The users without an entry who have a pool, and still may.
fn others<'a>(
    database: &'a str,
    pool: &'a Pool,
    present: &'a [Arc<PoolShared>],
) -> impl Iterator<Item = User> + 'a {
    let named = present
        .iter()
        .filter(move |p| p.of_other_user && p.identity.database == database)
        .map(|pool| pool.identity.user.as_str())
        .filter(move |name| !pool.users.iter().any(|user| user.username == *name));
    pool.other_users
        .iter()
        .flat_map(move |others| named.clone().map(move |name| others.named(name)))
}

/// Who asks `auth_query`.
fn auth_query_user(config: &Config, query: &AuthQuery) -> User {
    User {
        username: query.user.clone(),
        password: Some(query.password.clone()),
        auth_type: AuthType::Md5,
        server_username: query.user.clone(),
        server_password: None,
        // One query per login: two connections serve thousands of logins a second.
        pool_size: 2,
        min_pool_size: 0,
        pool_mode: PoolMode::Transaction,
        server_lifetime: config.general.server_lifetime,
        idle_timeout: config.general.idle_timeout,
        connect_timeout: config.general.connect_timeout,
        timeouts: Timeouts::default(),
        max_client_connections: None,
        max_user_connections: None,
        reserve_pool_size: 0,
        reserve_pool_timeout: None,
    }
}

/// What no reload changes.
#[derive(Debug, Clone)]
pub struct Fixed {
    pub threads: usize,
    pub ids: Ids,
    pub tallies: Arc<Tallies>,
}

/// Whether a pool would be what it is; its other users are pools of their own.
fn is_same(present: &PoolShared, user: &User, settings: &Pool) -> bool {
    let alone = |settings: &Pool| Pool {
        users: Vec::new(),
        ..settings.clone()
    };
    present.user == *user && alone(&present.settings) == alone(settings)
}

impl Pooler {
    /// Follows a new configuration.
    ///
    /// # Errors
    /// What is wrong with it. Everything stays as it was then.
    pub async fn reload(self: &Arc<Self>, mut config: Config) -> Result<(), String> {
        let _changing = self.changing_pools.lock().await;
        let present = self.config();
        keep_fixed(&present, &mut config);
        let files = Self::load_files(&config)?;
        let before = self.pools();
        let after = Arc::new(pools(&config, &before, &self.fixed()));
        let config = Arc::new(config);
        self.set_files(files);
        self.set_config(config.clone());

        // First everybody knows the new pools, then nobody begins anything with the old ones.
        let all: Vec<_> = after.iter().chain(before.iter()).cloned().collect();
        let of_threads = config.clone();
        self.ask(move |thread| thread.adopt(of_threads.clone(), &all))
            .await;
        self.set_pools(after.clone());
        let is_gone = |pool: &&Arc<PoolShared>| !after.iter().any(|kept| Arc::ptr_eq(kept, pool));
        let gone: Vec<_> = before.iter().filter(is_gone).cloned().collect();
        gone.iter().for_each(|pool| pool.retire());
        let kept = after.clone();
        self.ask(move |thread| thread.adopt(config.clone(), &kept))
            .await;
        // Who began to wait when the other thread had just looked.
        gone.iter().for_each(|pool| pool.retire());

        let handles = self.handles();
        let plugins = self.plugins.clone();
        // Off this thread: a plugin may block on its own threads.
        let starting = tokio::task::spawn_blocking(move || {
            plugins.iter().for_each(|plugin| plugin.start(&handles));
        });
        if starting.await.is_err() {
            log::error!("a plugin panicked in its reload");
        }
        let new = after
            .iter()
            .filter(|pool| !before.iter().any(|old| Arc::ptr_eq(old, pool)));
        log::info!(
            "Configuration reloaded: {} pools are new or changed, {} are gone or replaced",
            new.count(),
            gone.len()
        );
        Ok(())
    }

    /// The pool that somebody without an entry would have, to prove himself to, if such users are let in.
    pub(super) fn pool_of_other(&self, identity: &PoolIdentity) -> Option<PoolShared> {
        let config = self.config();
        let pool = config.pools.get(&identity.database)?;
        let user = pool.other_users.as_ref()?.named(&identity.user);
        let (identity, settings) = (identity.clone(), pool.clone());
        let shared = PoolShared::new(identity, user, settings, &self.fixed(), None);
        Some(shared.for_other_user())
    }

    /// Gives a user without an entry, who has proved himself to `proven`, a pool, unless another client of
    /// his has been faster. It stays as long as its client is counted. `None`: such users are not let in
    /// any more.
    pub(super) async fn add_pool(self: &Arc<Self>, proven: &PoolShared) -> Option<Seat> {
        let _changing = self.changing_pools.lock().await;
        let before = self.pools();
        let identity = &proven.identity;
        let known = before
            .iter()
            .find(|pool| !pool.asks_auth_query && pool.identity == *identity);
        if let Some(known) = known {
            known.learn_from(proven);
            return known.sessions.take(None);
        }
        let pool = Arc::new(self.pool_of_other(identity)?);
        pool.learn_from(proven);
        pool.join();
        let seat = pool.sessions.take(None);
        let after: Vec<_> = before.iter().cloned().chain([pool]).collect();
        self.change_pools(after).await;
        seat
    }

    /// Removes the pools of users without an entry that nobody uses.
    pub(super) async fn remove_unused_pools(self: &Arc<Self>) {
        let _changing = self.changing_pools.lock().await;
        let before = self.pools();
        let is_needed = |pool: &&Arc<PoolShared>| !(pool.of_other_user && pool.retire_if_unused());
        let kept: Vec<_> = before.iter().filter(is_needed).cloned().collect();
        if kept.len() < before.len() {
            self.change_pools(kept).await;
        }
    }

    async fn change_pools(&self, pools: Vec<Arc<PoolShared>>) {
        let pools = Arc::new(pools);
        let (config, of_threads) = (self.config(), pools.clone());
        self.ask(move |thread| thread.adopt(config.clone(), &of_threads))
            .await;
        self.set_pools(pools);
    }

    /// The pools as plugins see them.
    pub fn handles(self: &Arc<Self>) -> Vec<PoolHandle> {
        let pools = self.pools();
        let handles = pools
            .iter()
            .filter(|pool| !pool.asks_auth_query && !pool.of_other_user)
            .map(|pool| PoolHandle::new(self.clone(), pool.clone()));
        handles.collect()
    }
}

/// Leaves what takes a restart to change as it is, and says so.
fn keep_fixed(present: &Config, config: &mut Config) {
    let (old, new) = (&present.general, &mut config.general);
    let mut ignored = Vec::new();
    if new.host != old.host {
        ignored.push("host");
        new.host.clone_from(&old.host);
    }
    if new.port != old.port {
        ignored.push("port");
        new.port = old.port;
    }
    if new.takeover_socket != old.takeover_socket {
        ignored.push("takeover_socket");
        new.takeover_socket.clone_from(&old.takeover_socket);
    }
    if new.worker_threads != old.worker_threads {
        ignored.push("worker_threads");
        new.worker_threads = old.worker_threads;
    }
    if new.dns_cache_enabled != old.dns_cache_enabled {
        ignored.push("dns_cache_enabled");
        new.dns_cache_enabled = old.dns_cache_enabled;
    }
    if (new.enable_prometheus_exporter, new.prometheus_exporter_port)
        != (old.enable_prometheus_exporter, old.prometheus_exporter_port)
    {
        ignored.push("prometheus_exporter_port");
        new.enable_prometheus_exporter = old.enable_prometheus_exporter;
        new.prometheus_exporter_port = old.prometheus_exporter_port;
    }
    if !ignored.is_empty() {
        log::warn!(target: "pgcat::config", "a restart is needed to change general.{}", ignored.join(", general."));
    }
}
