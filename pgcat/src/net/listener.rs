//! The process: listening, signals, and the orderly end.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::io::DetachedIo;
use super::orders::{Ending, Order};
use super::reload::{self, Fixed, Load};
use super::threads::Pooler;
use super::unix_socket::UnixSocket;
use crate::config::model::Config;
use crate::error::Error;
use crate::metrics;
use crate::plugins::{self, Plugin};
use crate::pool::statistics::Ids;

/// Serves clients until a signal ends it.
///
/// SIGINT and SIGTERM drain: no new clients, idle ones are told, transactions may finish within
/// `shutdown_timeout`. A second signal ends at once.
///
/// # Errors
/// [`Error::Start`] if it cannot listen.
pub fn run(config: Config, plugins: Vec<Arc<dyn Plugin>>, load: Load) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Start(format!("could not start the runtime: {error}")))?;
    runtime.block_on(serve(config, plugins, load))
}

async fn serve(config: Config, plugins: Vec<Arc<dyn Plugin>>, load: Load) -> Result<(), Error> {
    let address = format!("{}:{}", config.general.host, config.general.port);
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| Error::Start(format!("could not listen on {address}: {error}")))?;
    let start = |error: std::io::Error| Error::Start(format!("could not install signals: {error}"));
    let unix = UnixSocket::listen(&config.general)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(start)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(start)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(start)?;

    let fixed = Fixed {
        threads: config.general.worker_threads,
        ids: Ids::default(),
        tallies: Arc::default(),
    };
    let pools = reload::pools(&config, &[], &fixed);
    let listen = listener
        .local_addr()
        .map_err(|error| Error::Start(format!("could not listen on {address}: {error}")))?;
    let exporter = metrics::http::listen(&config.general).await?;
    let (give_orders, mut orders) = mpsc::unbounded_channel();
    let plugins = plugins::built_in().into_iter().chain(plugins).collect();
    let (pooler, threads) = Pooler::start(config, pools, plugins, listen, fixed, give_orders)?;
    let handles = pooler.handles();
    for plugin in &pooler.plugins {
        plugin.start(&handles);
    }
    tokio::spawn(watch_file(pooler.clone()));
    if let Some(exporter) = exporter {
        tokio::spawn(metrics::http::serve(exporter, pooler.clone()));
    }
    log::info!("Running on {listen}");
    log::info!("Waiting for clients");

    let (reason, mut ending) = loop {
        tokio::select! {
            accepted = listener.accept() => {
                let accepted = accepted.and_then(|(stream, _)| {
                    pooler.dialler().tcp.apply(&stream);
                    stream.into_std().map(DetachedIo::Tcp)
                });
                begin(&pooler, accepted).await;
            }
            accepted = UnixSocket::accept(unix.as_ref()) => begin(&pooler, accepted).await,
            _ = interrupt.recv() => break ("Got SIGINT", Ending::Graceful),
            _ = terminate.recv() => break ("Got SIGTERM", Ending::Graceful),
            Some(order) = orders.recv() => match order {
                Order::ShutDown(ending) => break ("Got SHUTDOWN", ending),
                Order::Reload(answer) => {
                    let outcome = reload(&pooler, &load).await;
                    // The administrator may have left.
                    let _ = answer.send(outcome);
                }
            },
            _ = hangup.recv() => drop(reload(&pooler, &load).await),
        }
    };
    log::info!("{reason}, shutting down");
    drop((listener, unix));
    let deadline = Instant::now() + pooler.config().general.shutdown_timeout;
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

/// Reads the configuration again, and follows it. What is wrong with it is in the log.
async fn reload(pooler: &Arc<Pooler>, load: &Load) -> Result<(), String> {
    log::info!("Reloading config");
    let outcome = match load() {
        Ok(config) => pooler.reload(config).await,
        Err(error) => Err(error),
    };
    if let Err(error) = &outcome {
        log::error!(target: "pgcat::config", "Config reload error: {error}");
    }
    outcome
}

/// Orders a reload when the file has changed, which is looked for every `autoreload`.
async fn watch_file(pooler: Arc<Pooler>) {
    let read = || std::fs::read(&pooler.config().path).ok();
    let mut known = read();
    loop {
        let interval = pooler.config().general.autoreload;
        // Without an interval, to see whether a reload has set one.
        tokio::time::sleep(interval.unwrap_or(Duration::from_secs(1))).await;
        if interval.is_none() {
            continue;
        }
        let found = read();
        if found.is_some() && found != known {
            known = found;
            let (answer, answered) = oneshot::channel();
            if pooler.orders.send(Order::Reload(answer)).is_err() || answered.await.is_err() {
                return;
            }
        }
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
