//! What one session listens to, and the notifications that wait for it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::Subscriber;
use super::hub::Command;
use crate::wire::error_fields::ErrorFields;

/// The channels of a session. PostgreSQL has LISTEN and UNLISTEN take effect with the commit. Here a LISTEN does at once, so
/// that nothing is missed, and a rollback takes it back.
#[derive(Debug)]
pub struct Subscriptions {
    subscriber: Subscriber,
    hub: mpsc::UnboundedSender<Command>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    channels: BTreeSet<Box<str>>,
    /// Subscribed to in the current transaction.
    added: Vec<Box<str>>,
    /// To be left at the commit; `None`: all.
    leaving: Vec<Option<Box<str>>>,
    /// The transaction will end, or has ended, without effect.
    rolled_back: bool,
}

impl Subscriptions {
    pub fn new(subscriber: Subscriber, hub: mpsc::UnboundedSender<Command>) -> Self {
        Self {
            subscriber,
            hub,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes; returns when the server has confirmed it.
    ///
    /// # Errors
    /// The server's, or that it cannot be reached.
    pub async fn listen(
        &self,
        channel: &str,
        in_transaction: bool,
    ) -> Result<(), Box<ErrorFields>> {
        self.state()
            .leaving
            .retain(|leaving| leaving.as_deref().is_some_and(|left| left != channel));
        if self.state().channels.contains(channel) {
            return Ok(());
        }
        let (done, confirmed) = oneshot::channel();
        let command = Command::Listen {
            channel: channel.into(),
            subscriber: self.subscriber,
            done,
        };
        let lost = || {
            Box::new(ErrorFields::error(
                "08006",
                "the pooler's listening connection was lost",
            ))
        };
        self.hub.send(command).map_err(|_| lost())?;
        confirmed.await.map_err(|_| lost())??;
        let mut state = self.state();
        state.channels.insert(channel.into());
        if in_transaction {
            state.added.push(channel.into());
        }
        Ok(())
    }

    /// Leaves a channel (`None`: all of them), in a transaction at its commit.
    pub fn unlisten(&self, channel: Option<&str>, in_transaction: bool) {
        let mut state = self.state();
        state.leaving.push(channel.map(Into::into));
        drop(state);
        if !in_transaction {
            self.commit();
        }
    }

    /// The current transaction was rolled back, or will be (or not, after all: a savepoint).
    pub fn note_rollback(&self, rolled_back: bool) {
        self.state().rolled_back = rolled_back;
    }

    /// The transaction is over.
    pub fn transaction_ended(&self) {
        if !std::mem::take(&mut self.state().rolled_back) {
            return self.commit();
        }
        let mut state = self.state();
        state.leaving.clear();
        let added = std::mem::take(&mut state.added);
        for channel in &added {
            state.channels.remove(channel);
            self.leave(channel);
        }
    }

    fn commit(&self) {
        let mut state = self.state();
        state.added.clear();
        for leaving in std::mem::take(&mut state.leaving) {
            let left = match leaving {
                Some(channel) => state.channels.take(&channel).into_iter().collect(),
                None => std::mem::take(&mut state.channels),
            };
            left.iter().for_each(|channel| self.leave(channel));
        }
    }

    fn leave(&self, channel: &str) {
        // Without a hub nobody listens.
        let _ = self.hub.send(Command::Unlisten {
            channel: channel.into(),
            subscriber: self.subscriber,
        });
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        let channels = std::mem::take(&mut self.state().channels);
        channels.iter().for_each(|channel| self.leave(channel));
    }
}

/// A channel, and a NotificationResponse of it, framed.
type Notification = (Box<str>, Arc<[u8]>);

/// Notifications on their way to a client.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: RefCell<VecDeque<Notification>>,
    bytes: Cell<usize>,
    /// The client is to be disconnected: what it should have heard is lost.
    broken: Cell<Option<Broken>>,
}

/// Why a client that listens is disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The connection that listened for it was lost.
    Lost,
    /// It does not read, or stays in a transaction.
    Full,
}

/// Bytes that may wait for one client.
const LIMIT: usize = 8 << 20;

impl Inbox {
    pub fn put(&self, channel: &str, message: &Arc<[u8]>) {
        let bytes = self.bytes.get() + message.len();
        if bytes > LIMIT {
            return self.fail(Broken::Full);
        }
        self.bytes.set(bytes);
        self.waiting
            .borrow_mut()
            .push_back((channel.into(), message.clone()));
    }

    pub fn fail(&self, broken: Broken) {
        self.broken.set(Some(broken));
        self.waiting.borrow_mut().clear();
    }

    pub fn is_empty(&self) -> bool {
        self.broken.get().is_none() && self.waiting.borrow().is_empty()
    }

    /// Appends what waits to `out`, but for what the client no longer listens to: it may have left the channel while this
    /// was on its way.
    ///
    /// # Errors
    /// What to tell the client before its connection is closed.
    pub fn take(
        &self,
        subscriptions: &Subscriptions,
        out: &mut Vec<u8>,
    ) -> Result<(), Box<ErrorFields>> {
        match self.broken.get() {
            None => (),
            Some(Broken::Lost) => {
                return Err(Box::new(
                    ErrorFields::fatal(
                        "57P01",
                        "terminating connection because notifications may have been lost",
                    )
                    .detail("The pooler's connection that listens for its clients was closed.")
                    .hint("Connect again and LISTEN."),
                ));
            }
            Some(Broken::Full) => {
                return Err(Box::new(
                    ErrorFields::fatal(
                        "54000",
                        "too many notifications are waiting for this client",
                    )
                    .detail("It has read none of them, or has kept a transaction open."),
                ));
            }
        }
        self.bytes.set(0);
        let state = subscriptions.state();
        for (channel, message) in self.waiting.borrow_mut().drain(..) {
            if state.channels.contains(&channel) {
                out.extend_from_slice(&message);
            }
        }
        Ok(())
    }
}
