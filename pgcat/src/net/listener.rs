//! The process: listening, signals, and the orderly end.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::io::DetachedIo;
use super::orders::{Ending, Order};
use super::pool_handle::PoolHandle;
use super::threads::Pooler;
use super::unix_socket::UnixSocket;
use crate::config::model::{AuthQuery, AuthType, Config, PoolMode, User};
use crate::error::Error;
use crate::plugins::{Plugin, PoolIdentity};
use crate::pool::shared::PoolShared;
use crate::pool::statistics::Ids;

/// Serves clients until a signal ends it.
///
/// SIGINT and SIGTERM drain: no new clients, idle ones are told, transactions may finish within
/// `shutdown_timeout`. A second signal ends at once.
///
/// # Errors
/// [`Error::Start`] if it cannot listen.
pub fn run(config: Config, plugins: Vec<Arc<dyn Plugin>>) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Start(format!("could not start the runtime: {error}")))?;
    runtime.block_on(serve(config, plugins))
}

async fn serve(config: Config, plugins: Vec<Arc<dyn Plugin>>) -> Result<(), Error> {
    let address = format!("{}:{}", config.general.host, config.general.port);
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| Error::Start(format!("could not listen on {address}: {error}")))?;
    let start = |error: std::io::Error| Error::Start(format!("could not install signals: {error}"));
    let unix = UnixSocket::listen(&config.general)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(start)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(start)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(start)?;

    let shutdown_timeout = config.general.shutdown_timeout;
    let ids = Ids::default();
    let pools = pools(&config, &ids);
    let listen = listener
        .local_addr()
        .map_err(|error| Error::Start(format!("could not listen on {address}: {error}")))?;
    let (give_orders, mut orders) = mpsc::unbounded_channel();
    let (pooler, threads) = Pooler::start(config, pools, plugins, listen, ids, give_orders)?;
    let handles: Vec<_> = pooler
        .pools
        .iter()
        .filter(|pool| !pool.asks_auth_query)
        .map(|pool| PoolHandle::new(pooler.clone(), pool.clone()))
        .collect();
    for plugin in &pooler.plugins {
        plugin.start(&handles);
    }
    log::info!("Running on {listen}");
    log::info!("Waiting for clients");

    let (reason, mut ending) = loop {
        tokio::select! {
            accepted = listener.accept() => {
                let accepted = accepted.and_then(|(stream, _)| {
                    pooler.tcp.apply(&stream);
                    stream.into_std().map(DetachedIo::Tcp)
                });
                begin(&pooler, accepted).await;
            }
            accepted = UnixSocket::accept(unix.as_ref()) => begin(&pooler, accepted).await,
            _ = interrupt.recv() => break ("Got SIGINT", Ending::Graceful),
            _ = terminate.recv() => break ("Got SIGTERM", Ending::Graceful),
            Some(Order::ShutDown(ending)) = orders.recv() => break ("Got SHUTDOWN", ending),
            _ = hangup.recv() => match pooler.reload_files() {
                Ok(()) => log::info!("Got SIGHUP; certificates and hba_file have been read again, and nothing else"),
                Err(error) => log::error!("Got SIGHUP; certificates and hba_file stay as they were: {error}"),
            },
        }
    };
    log::info!("{reason}, shutting down");
    drop((listener, unix));
    let deadline = Instant::now() + shutdown_timeout;
    loop {
        if ending == Ending::Graceful {
            pooler.shutdown();
        }
        let drained = async {
            while ending != Ending::Immediate && pooler.clients() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let again = tokio::select! {
            () = drained => break,
            () = tokio::time::sleep_until(deadline), if ending == Ending::Graceful => {
                log::warn!("{} clients are still connected after shutdown_timeout", pooler.clients());
                break;
            }
            _ = interrupt.recv() => Ending::Graceful,
            _ = terminate.recv() => Ending::Graceful,
            Some(Order::ShutDown(again)) = orders.recv() => again,
        };
        // Waiting for clients may turn into waiting for transactions; all else is impatience.
        if ending == Ending::Graceful || again == Ending::Immediate {
            log::warn!("Got a second signal, ending at once");
            break;
        }
        ending = again;
    }
    // Off this thread: the plugins' own threads may need what runs here until they have ended.
    let plugins = pooler.plugins.clone();
    let stopping = tokio::task::spawn_blocking(move || plugins.iter().for_each(|p| p.stop()));
    if tokio::time::timeout(Duration::from_secs(5), stopping)
        .await
        .is_err()
    {
        log::warn!("a plugin did not stop in time");
    }
    pooler.stop();
    for thread in threads {
        if thread.join().is_err() {
            log::error!("a thread panicked");
        }
    }
    log::info!("Shutting down...");
    Ok(())
}

fn pools(config: &Config, ids: &Ids) -> Vec<Arc<PoolShared>> {
    let threads = config.general.worker_threads;
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
            let index = pools.len();
            let shared = PoolShared::new(index, identity, user, pool.clone(), threads, ids.clone());
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

/// Gives a connection that was accepted to a thread.
async fn begin(pooler: &Pooler, accepted: std::io::Result<DetachedIo>) {
    match accepted {
        Ok(io) => pooler.accepted(io),
        Err(error) => {
            // Out of file descriptors: the listener stays readable, so wait instead of spinning.
            log::warn!("could not accept a client: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
