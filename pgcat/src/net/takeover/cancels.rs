//! Cancel requests for clients of processes that have been taken over from.
//!
//! Which process gave out a key does not show in it, so a key nobody here has goes to all that still
//! live. Each reads from a pair of datagram sockets whose other end is handed on from process to
//! process. With the key goes one end of a second pair, which is closed when the server has been told.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::channel::Channel;
use crate::net::threads::{CancelKey, Pooler};

/// So many are remembered; by then the others have run for as many restarts.
const MOST: usize = 32;

/// The processes that have handed over and still serve clients, the latest first.
#[derive(Debug, Default)]
pub struct Predecessors {
    living: Mutex<Vec<Arc<Channel>>>,
}

impl Predecessors {
    /// # Errors
    /// As the operating system reports them.
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        let channels = sockets
            .into_iter()
            .map(|socket| Channel::datagram(socket).map(Arc::new));
        Ok(Self {
            living: Mutex::new(channels.collect::<io::Result<_>>()?),
        })
    }

    /// Their sockets, for the next process.
    pub fn duplicate(&self) -> Vec<OwnedFd> {
        let living = self.living();
        let sockets = living.iter().take(MOST - 1);
        sockets
            .filter_map(|channel| channel.duplicate().ok())
            .collect()
    }

    /// Cancels what the client with this key runs, if it is a client of one of them.
    pub async fn cancel(&self, key: CancelKey) {
        let living = self.living().clone();
        for channel in living {
            if forward(&channel, key).await.is_err() {
                self.living().retain(|other| !Arc::ptr_eq(other, &channel));
            }
        }
    }

    fn living(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Channel>>> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn forward(channel: &Channel, key: CancelKey) -> io::Result<()> {
    let (mut told, teller) = UnixStream::pair()?;
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&key.pid.to_be_bytes());
    bytes[4..].copy_from_slice(&key.secret.to_be_bytes());
    channel.send(&bytes, &[teller.as_fd()]).await?;
    drop(teller);
    // Its end, however it comes about.
    let _ = told.read(&mut [0]).await;
    Ok(())
}

/// The two ends: where this process hears of cancel requests, and what its successors send them to.
///
/// # Errors
/// As the operating system reports them.
pub(super) fn pair() -> io::Result<(Channel, OwnedFd)> {
    let (ours, theirs) = UnixDatagram::pair()?;
    Ok((Channel::datagram(ours.into())?, theirs.into()))
}

/// Serves the cancel requests that successors pass on.
pub async fn serve(channel: Channel, pooler: Arc<Pooler>) {
    loop {
        let (bytes, teller) = match channel.receive().await {
            Ok(received) => received,
            Err(error) => {
                log::warn!("cancel requests are no longer passed on: {error}");
                return;
            }
        };
        if let ([a, b, c, d, e, f, g, h], [_]) = (&bytes[..], &teller[..]) {
            let key = CancelKey {
                pid: u32::from_be_bytes([*a, *b, *c, *d]),
                secret: u32::from_be_bytes([*e, *f, *g, *h]),
            };
            let pooler = pooler.clone();
            tokio::spawn(async move {
                pooler.cancel_own(key).await;
                drop(teller);
            });
        }
    }
}
