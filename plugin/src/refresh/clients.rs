//! The worker's connections: in-process clients of one pool, as many at a time as allowed.

use std::cell::RefCell;
use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::time::Duration;

use pgcat::plugins::PoolHandle;
use tokio::io::DuplexStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{AsyncMessage, Connection, NoTls};

use super::prepared::PreparedClient;
use super::role::WorkerConn;
use crate::conn::Error;

/// The pooler answers a login at once; if it does not, it is shutting down.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// In-process clients of a pool. Between transactions they hold no server connection, so they are kept.
pub(super) struct Clients {
    pool: PoolHandle,
    idle: RefCell<Vec<PreparedClient>>,
    permits: std::sync::Arc<Semaphore>,
    max_connections: usize,
}

impl Clients {
    pub(super) fn new(pool: PoolHandle, max_connections: usize) -> Rc<Self> {
        let permits = std::sync::Arc::new(Semaphore::new(max_connections));
        Rc::new(Self {
            pool,
            idle: RefCell::default(),
            permits,
            max_connections,
        })
    }

    pub(super) fn user(&self) -> &str {
        &self.pool.identity().user
    }

    pub(super) fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Waits for its turn and borrows a connection that works as `role` in its transactions (`None`: as
    /// the pool's own user).
    pub(super) async fn lease(self: &Rc<Self>, role: Option<String>) -> Result<Lease, Error> {
        let permit = std::sync::Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|error| Error::Connection(error.to_string()))?;
        let idle = self
            .idle
            .borrow_mut()
            .pop()
            .filter(|client| !client.is_closed());
        let client = match idle {
            Some(client) => client,
            None => self.connect().await?,
        };
        Ok(Lease {
            conn: Some(WorkerConn::new(client, role)),
            clients: Rc::clone(self),
            sound: false,
            _permit: permit,
        })
    }

    async fn connect(&self) -> Result<PreparedClient, Error> {
        let identity = self.pool.identity();
        let mut config = tokio_postgres::Config::new();
        config.user(&identity.user).dbname(&identity.database);
        // Not the role's own path: in `public`, say, anybody may have put an operator that fits our SQL better than
        // pg_catalog's does, and the worker would run it as the stream tables' owner. At startup, as the pooler asks an
        // in-process client's session for no later SET: that would stay on the server connection for its next client.
        config.options("-c search_path=pg_catalog,pg_temp");
        let login = config.connect_raw(self.pool.connect(), NoTls);
        let (client, connection) = tokio::time::timeout(LOGIN_TIMEOUT, login)
            .await
            .map_err(|_| Error::Connection("login timed out".to_owned()))??;
        tokio::task::spawn_local(drive(connection));
        Ok(PreparedClient::new(client))
    }
}

/// Moves a connection's bytes until it ends. Its notices are about objects of ours, so they are not news.
async fn drive(mut connection: Connection<DuplexStream, NoTlsStream>) {
    while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
        match message {
            Ok(AsyncMessage::Notice(notice)) => log::trace!("stream tables: {}", notice.message()),
            Ok(_) => {}
            Err(error) => {
                log::debug!("stream tables: connection closed: {error}");
                break;
            }
        }
    }
}

/// A borrowed connection. It is given back only if it was [`Lease::returned`]: after an error nobody
/// knows whether a transaction is still open on it, and a new one costs next to nothing.
pub(super) struct Lease {
    conn: Option<WorkerConn>,
    clients: Rc<Clients>,
    sound: bool,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    /// Gives the connection back for the next.
    pub(super) fn returned(mut self) {
        self.sound = true;
    }
}

impl Deref for Lease {
    type Target = WorkerConn;

    fn deref(&self) -> &WorkerConn {
        self.conn.as_ref().expect("present until dropped")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut WorkerConn {
        self.conn.as_mut().expect("present until dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (true, Some(conn)) = (self.sound, self.conn.take()) {
            self.clients.idle.borrow_mut().push(conn.into_client());
        }
    }
}
