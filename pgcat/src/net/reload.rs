//! Reload: from a configuration that has been read and found good to pools that follow it.
//!
//! A pool whose settings are unchanged stays as it is. Any other is replaced as a whole: the old one is
//! retired, sessions go over to the new one between their transactions, and its connections are closed
//! as they become free. Statistics, bans and what administrators have ordered go over, too.

use std::sync::Arc;

use super::pool_handle::PoolHandle;
use super::threads::Pooler;
use crate::config::model::{AuthQuery, AuthType, Config, Pool, PoolMode, User};
use crate::plugins::{PoolIdentity, sections};
use crate::pool::shared::PoolShared;

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
        for (user, asks_auth_query) in users.chain(asking) {
            let identity = PoolIdentity {
                database: database.clone(),
                user: user.username.clone(),
            };
            let predecessor = present
                .iter()
                .find(|pool| pool.identity == identity && pool.asks_auth_query == asks_auth_query);
            if let Some(same) = predecessor
                && is_same(same, &user, pool)
            {
                pools.push(same.clone());
                continue;
            }
            let shared = PoolShared::new(
                identity,
                user,
                pool.clone(),
                fixed.threads,
                fixed.ids.clone(),
                predecessor.map(|predecessor| &**predecessor),
            );
            pools.push(Arc::new(if asks_auth_query {
                shared.for_auth_query()
            } else {
                shared
            }));
        }
    }
    pools
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
        statement_timeout: None,
    }
}

/// What no reload changes.
#[derive(Debug, Clone)]
pub struct Fixed {
    pub threads: usize,
    pub ids: crate::pool::statistics::Ids,
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
        sections::check(&config, &self.plugins)?;
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

    /// The pools as plugins see them.
    pub fn handles(self: &Arc<Self>) -> Vec<PoolHandle> {
        let pools = self.pools();
        let handles = pools
            .iter()
            .filter(|pool| !pool.asks_auth_query)
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
