//! The connection that listens for all clients of a pool, and who listens to what.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Subscriber;
use crate::error::Error;
use crate::net::server::Server;
use crate::net::threads::ThreadContext;
use crate::pool::shared::PoolShared;
use crate::pool::slots::Slot;
use crate::router::route::Route;
use crate::wire::error_fields::ErrorFields;
use crate::wire::message::{build, take_cstr};
use crate::wire::{HEADER, Header, backend};

/// What a session asks of the hub.
#[derive(Debug)]
pub enum Command {
    Listen {
        channel: Box<str>,
        subscriber: Subscriber,
        done: oneshot::Sender<Result<(), Box<ErrorFields>>>,
    },
    Unlisten {
        channel: Box<str>,
        subscriber: Subscriber,
    },
}

/// A pool's hub. Its task starts with the first LISTEN; it holds a server connection, beyond `pool_size`, as long as there
/// is a channel to listen to.
#[derive(Debug, Default)]
pub struct Hub {
    commands: OnceLock<mpsc::UnboundedSender<Command>>,
}

impl Hub {
    /// Where to send commands to; starts the task on this thread if there is none.
    pub fn commands(
        &self,
        thread: &Rc<ThreadContext>,
        pool: &Arc<PoolShared>,
    ) -> mpsc::UnboundedSender<Command> {
        self.commands
            .get_or_init(|| {
                let (sender, commands) = mpsc::unbounded_channel();
                let listener = Listener {
                    thread: thread.clone(),
                    pool: pool.clone(),
                    server: None,
                    channels: HashMap::new(),
                };
                tokio::task::spawn_local(listener.run(commands));
                sender
            })
            .clone()
    }
}

struct Listener {
    thread: Rc<ThreadContext>,
    pool: Arc<PoolShared>,
    server: Option<Box<Server>>,
    channels: HashMap<Box<str>, HashSet<Subscriber>>,
}

impl Listener {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            let heard = async {
                match &mut self.server {
                    Some(server) => server.read_message().await,
                    None => std::future::pending().await,
                }
            };
            // Nothing is lost by dropping `heard`: a part of a message stays in the connection's buffer.
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                message = heard => match message {
                    Ok((backend::NOTIFICATION_RESPONSE, body)) => self.deliver(&body),
                    Ok((backend::ERROR_RESPONSE, body)) => {
                        let error = ErrorFields::read(&body);
                        self.lost(&Error::ServerRefused(Box::new(error)));
                    }
                    Ok(_) => (),
                    Err(error) => self.lost(&error),
                },
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Listen {
                channel,
                subscriber,
                done,
            } => {
                let outcome = match self.channels.contains_key(&channel) {
                    true => Ok(()),
                    false => self.say("LISTEN", &channel).await,
                };
                let outcome = match outcome {
                    Ok(()) => {
                        let channel = channel.clone();
                        self.channels.entry(channel).or_default().insert(subscriber);
                        Ok(())
                    }
                    Err(Error::ServerRefused(fields)) => Err(fields),
                    Err(error) => {
                        if self.server.is_some() {
                            self.lost(&error);
                        }
                        Err(Box::new(
                            ErrorFields::error("08006", "could not listen")
                                .detail(error.to_string()),
                        ))
                    }
                };
                if done.send(outcome).is_err() {
                    // The session is gone meanwhile, and does not know that it listens.
                    self.leave(&channel, subscriber).await;
                }
            }
            Command::Unlisten {
                channel,
                subscriber,
            } => self.leave(&channel, subscriber).await,
        }
    }

    async fn leave(&mut self, channel: &str, subscriber: Subscriber) {
        let Some(subscribers) = self.channels.get_mut(channel) else {
            return;
        };
        subscribers.remove(&subscriber);
        if !subscribers.is_empty() {
            return;
        }
        self.channels.remove(channel);
        if self.channels.is_empty() {
            self.server = None;
        } else if let Err(error) = self.say("UNLISTEN", channel).await {
            self.lost(&error);
        }
    }

    /// Within `connect_timeout`: those who want to listen have server connections, and there is a queue
    /// behind each.
    async fn say(&mut self, verb: &str, channel: &str) -> Result<(), Error> {
        let patience = self.pool.user.connect_timeout;
        let server = match &mut self.server {
            Some(server) => server,
            None => {
                let primary = Route::primary_of(&self.pool.settings);
                let at = self.pool.choose(primary, &[]).ok_or(Error::NoSuchServer)?;
                let slot = Slot::beyond(&self.pool, at);
                let now = self.thread.now.get();
                let dialler = self.thread.pooler.dialler();
                let connecting = Server::connect(slot, &dialler, now);
                let server = timeout(patience, connecting).await;
                self.server
                    .insert(server.unwrap_or(Err(Error::ConnectTimeout))?)
            }
        };
        let sql = format!("{verb} \"{}\"", channel.replace('"', "\"\""));
        let mut unsolicited = Vec::new();
        let outcome = timeout(patience, server.simple_query(&sql, &mut unsolicited)).await;
        let outcome = outcome.unwrap_or(Err(Error::FailedHealthCheck));
        let mut rest = &unsolicited[..];
        while let Ok(Some(header)) = Header::read(rest) {
            let (message, later) = rest.split_at(header.total());
            if header.tag == backend::NOTIFICATION_RESPONSE {
                self.deliver(&message[HEADER..]);
            }
            rest = later;
        }
        outcome.map(drop)
    }

    /// Passes a notification on to those who listen to its channel.
    fn deliver(&self, body: &[u8]) {
        let Some((channel, _)) = body.get(4..).and_then(take_cstr) else {
            return;
        };
        let channel = String::from_utf8_lossy(channel);
        let Some(subscribers) = self.channels.get(&*channel) else {
            return;
        };
        let mut message = Vec::new();
        build(&mut message, backend::NOTIFICATION_RESPONSE, |out| {
            out.extend_from_slice(body);
        });
        let message: Arc<[u8]> = message.into();
        for (thread, sessions) in by_thread(subscribers.iter()) {
            let thread = &self.thread.pooler.threads[thread];
            thread.notify(sessions, channel.as_ref().into(), message.clone());
        }
    }

    /// The connection is gone, and with it perhaps notifications.
    fn lost(&mut self, error: &Error) {
        log::warn!(
            "{}/{}: the connection that listens for clients was lost: {error}",
            self.pool.identity.database,
            self.pool.identity.user
        );
        self.server = None;
        let channels = std::mem::take(&mut self.channels);
        for (thread, sessions) in by_thread(channels.values().flatten()) {
            self.thread.pooler.threads[thread].listener_lost(sessions);
        }
    }
}

fn by_thread<'a>(subscribers: impl Iterator<Item = &'a Subscriber>) -> HashMap<usize, Vec<u64>> {
    let mut threads: HashMap<usize, Vec<u64>> = HashMap::new();
    for subscriber in subscribers {
        threads
            .entry(subscriber.thread)
            .or_default()
            .push(subscriber.session);
    }
    threads
}
