//! The process: listening, signals, and the orderly end.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::io::DetachedIo;
use super::listeners::Listeners;
use super::orders::{Ending, Order};
use super::reload::{self, Fixed, Load};
use super::service_manager;
use super::takeover::{self, HandedOver, Inherited, Taker};
use super::threads::Pooler;
use crate::config::model::Config;
use crate::error::Error;
use crate::metrics;
use crate::plugins::{self, Plugin};
use crate::pool::statistics::Ids;

/// How often to look whether what an end waits for has happened.
const LOOK: Duration = Duration::from_millis(20);

/// Where the listening sockets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Fresh,
    /// From the process that serves now, if there is one.
    TakeOver,
}

/// Serves clients until a signal ends it, or another process takes over.
///
/// SIGINT and SIGTERM drain: new clients are refused, idle ones are told, transactions may finish within
/// `shutdown_timeout`. A second signal ends at once.
///
/// # Errors
/// [`Error::Start`] if it cannot listen, or the process it was to take over from does not let it.
pub fn run(
    config: Config,
    plugins: Vec<Arc<dyn Plugin>>,
    load: Load,
    start: Start,
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Start(format!("could not start the runtime: {error}")))?;
    runtime.block_on(serve(config, plugins, load, start))
}

async fn serve(
    config: Config,
    plugins: Vec<Arc<dyn Plugin>>,
    load: Load,
    start: Start,
) -> Result<(), Error> {
    let failed =
        |what: &str, error: std::io::Error| Error::Start(format!("could not {what}: {error}"));
    let signals = |error| failed("install signals", error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(signals)?;
    let mut inherited = match start {
        Start::Fresh => Inherited::default(),
        Start::TakeOver => takeover::ask(&config.general).await?,
    };
    let predecessors = inherited.predecessors();
    let predecessors = predecessors.map_err(|error| failed("pass cancel requests on", error))?;
    let mut listeners = Listeners::open(&config.general, &mut inherited).await?;

    let fixed = Fixed {
        threads: config.general.worker_threads,
        ids: Ids::default(),
        tallies: Arc::default(),
    };
    let pools = reload::pools(&config, &[], &fixed);
    let listen = listeners
        .address()
        .map_err(|error| failed("listen", error))?;
    let (give_orders, mut orders) = mpsc::unbounded_channel();
    let plugins = plugins::built_in().into_iter().chain(plugins).collect();
    let (pooler, threads) = Pooler::start(
        config,
        pools,
        plugins,
        listen,
        fixed,
        give_orders,
        predecessors,
    )?;
    let handles = pooler.handles();
    for plugin in &pooler.plugins {
        plugin.start(&handles);
    }
    inherited.complete().await?;
    listeners.own(&pooler.config().general);
    let watch = tokio::spawn(watch_file(pooler.clone()));
    let exporter = listeners
        .exporter
        .as_ref()
        .map(|(_, listener)| tokio::spawn(metrics::http::serve(listener.clone(), pooler.clone())));
    log::info!("Running on {listen}");
    log::info!("Waiting for clients");
    service_manager::serving();

    let mut listeners = Some(listeners);
    let mut offer: Option<Offer> = None;
    let mut end = End::default();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (reason, ending) = tokio::select! {
            accepted = Listeners::accept(listeners.as_ref()) => {
                begin(&pooler, accepted).await;
                continue;
            }
            asked = Listeners::asked(listeners.as_ref()), if offer.is_none() => {
                match (asked, &listeners) {
                    (Ok(stream), Some(listeners)) => {
                        offer = sockets(listeners, &pooler).map(|sockets| -> Offer {
                            Box::pin(takeover::offer(stream, sockets))
                        });
                    }
                    (Err(error), _) => {
                        log::warn!("could not accept a process that wants to take over: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    (Ok(_), None) => {}
                }
                continue;
            }
            ready = ready(&mut offer) => {
                offer = None;
                let Some(HandedOver { taken, cancels }) = hand_over(ready).await else {
                    continue;
                };
                if let Some(listeners) = listeners.take() {
                    listeners.close(&taken);
                }
                exporter.iter().for_each(|task| task.abort());
                watch.abort();
                tokio::spawn(takeover::serve_cancels(cancels, pooler.clone()));
                // What the plugins do in the background is the new process's work.
                let plugins = pooler.plugins.clone();
                tokio::task::spawn_blocking(move || plugins.iter().for_each(|p| p.stop()));
                ("Another process serves now", Ending::HandedOver)
            }
            _ = interrupt.recv() => ("Got SIGINT", Ending::Graceful),
            _ = terminate.recv() => ("Got SIGTERM", Ending::Graceful),
            Some(order) = orders.recv() => match order {
                Order::ShutDown(ending) => ("Got SHUTDOWN", ending),
                Order::Reload(answer) => {
                    let outcome = match end.ending {
                        None => reload(&pooler, &load, listeners.as_ref()).await,
                        Some(_) => Err("the pooler is shutting down".to_owned()),
                    };
                    // The administrator may have left.
                    let _ = answer.send(outcome);
                    continue;
                }
            },
            _ = hangup.recv() => {
                match end.ending {
                    None => drop(reload(&pooler, &load, listeners.as_ref()).await),
                    Some(_) => log::warn!("Got SIGHUP, but the pooler is shutting down"),
                }
                continue;
            }
            // Not while another process is about to take over: it would find nobody.
            _ = look.tick(), if end.ending.is_some() && offer.is_none() => match end.look(&pooler) {
                ControlFlow::Break(()) => break,
                ControlFlow::Continue(None) => continue,
                ControlFlow::Continue(Some(next)) => next,
            },
        };
        if end.begin(&pooler, reason, ending).is_break() {
            break;
        }
    }
    drop(listeners);
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

/// An end that has begun.
#[derive(Default)]
struct End {
    /// What it waits for.
    ending: Option<Ending>,
    deadline: Option<Instant>,
}

impl End {
    /// Begins an end, or hastens the one that has begun. `Break` is the end of all waiting.
    fn begin(&mut self, pooler: &Pooler, reason: &str, ending: Ending) -> ControlFlow<()> {
        match (self.ending, ending) {
            (Some(Ending::WaitForClients | Ending::HandedOver), Ending::WaitForClients)
            | (Some(_), Ending::HandedOver) => return ControlFlow::Continue(()),
            // Waiting for clients may turn into waiting for transactions; all else is impatience.
            (Some(Ending::Graceful), _) => {
                log::warn!("{reason} again, ending at once");
                return ControlFlow::Break(());
            }
            _ => log::info!("{reason}, shutting down"),
        }
        if self.ending.is_none() && ending != Ending::HandedOver {
            service_manager::stopping();
        }
        let general = &pooler.config().general;
        let limit = match ending {
            Ending::Immediate => return ControlFlow::Break(()),
            Ending::Graceful => {
                pooler.shutdown();
                Some(general.shutdown_timeout)
            }
            Ending::WaitForClients => {
                pooler.refuse();
                None
            }
            // Nobody is refused: who connected to this process before is on his way in.
            Ending::HandedOver => general.takeover_timeout,
        };
        self.ending = Some(ending);
        self.deadline = limit.map(|limit| Instant::now() + limit);
        ControlFlow::Continue(())
    }

    /// Whether it is over, and if not, how it goes on.
    fn look(&self, pooler: &Pooler) -> ControlFlow<(), Option<(&'static str, Ending)>> {
        let newcomers = match self.ending {
            Some(Ending::HandedOver) => pooler.newcomers(),
            _ => 0,
        };
        // In this order: a newcomer becomes a client.
        if newcomers + pooler.clients() == 0 {
            return ControlFlow::Break(());
        }
        if self
            .deadline
            .is_none_or(|deadline| Instant::now() < deadline)
        {
            return ControlFlow::Continue(None);
        }
        if self.ending == Some(Ending::HandedOver) {
            let next = ("takeover_timeout is over", Ending::Graceful);
            return ControlFlow::Continue(Some(next));
        }
        log::warn!(
            "{} clients are still connected after shutdown_timeout",
            pooler.clients()
        );
        ControlFlow::Break(())
    }
}

/// The conversation with a process that wants to take over.
type Offer = Pin<Box<dyn Future<Output = std::io::Result<Taker>>>>;

/// All that another process needs to serve in place of this one.
fn sockets(listeners: &Listeners, pooler: &Pooler) -> Option<Vec<(String, std::os::fd::OwnedFd)>> {
    let mut sockets = match listeners.duplicate() {
        Ok(sockets) => sockets,
        Err(error) => {
            log::warn!("could not give the sockets to another process: {error}");
            return None;
        }
    };
    let older = pooler.predecessors.duplicate().into_iter();
    sockets.extend(older.map(|socket| (takeover::CANCELS.to_owned(), socket)));
    Some(sockets)
}

/// Until the process is ready; never, if there is none.
async fn ready(offer: &mut Option<Offer>) -> std::io::Result<Taker> {
    match offer {
        Some(offer) => offer.await,
        None => std::future::pending().await,
    }
}

/// Gives the sockets to a process that is ready. `None`: they stay here.
async fn hand_over(ready: std::io::Result<Taker>) -> Option<HandedOver> {
    let outcome = match ready {
        Ok(taker) => taker.hand_over().await,
        Err(error) => Err(error),
    };
    outcome
        .inspect_err(|error| log::warn!("a process did not take over, going on: {error}"))
        .ok()
}

/// Reads the configuration again, and follows it. What is wrong with it is in the log.
async fn reload(
    pooler: &Arc<Pooler>,
    load: &Load,
    listeners: Option<&Listeners>,
) -> Result<(), String> {
    log::info!("Reloading config");
    let outcome = match load() {
        Ok(config) => pooler.reload(config).await,
        Err(error) => Err(error),
    };
    if let Err(error) = &outcome {
        log::error!(target: "pgcat::config", "Config reload error: {error}");
    }
    if let Some(listeners) = listeners {
        listeners.apply(&pooler.dialler().tcp);
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
async fn begin(pooler: &Arc<Pooler>, accepted: std::io::Result<DetachedIo>) {
    match accepted {
        Ok(io) => {
            pooler.accepted(io);
        }
        Err(error) => {
            // Out of file descriptors: the listener stays readable, so wait instead of spinning.
            log::warn!("could not accept a client: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
