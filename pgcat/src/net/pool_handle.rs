//! A pool as plugins see it: an address to connect to, inside the process.

use std::fmt;
use std::sync::Arc;

use tokio::io::DuplexStream;

use super::io::DetachedIo;
use super::threads::Pooler;
use crate::plugins::PoolIdentity;
use crate::pool::shared::PoolShared;

/// Bytes an in-process connection buffers in each direction.
const BUFFER: usize = 64 * 1024;

/// See the module's text.
#[derive(Clone)]
pub struct PoolHandle {
    pooler: Arc<Pooler>,
    pool: Arc<PoolShared>,
}

impl PoolHandle {
    pub(crate) fn new(pooler: Arc<Pooler>, pool: Arc<PoolShared>) -> Self {
        Self { pooler, pool }
    }

    /// The database clients name, and the user.
    pub fn identity(&self) -> &PoolIdentity {
        &self.pool.identity
    }

    /// Which server and database [`PoolHandle::connect`] leads to, in the words of the configuration:
    /// pools of the same server and database share their data.
    pub fn server_database(&self) -> (String, u16, String) {
        let address = self.pool.home();
        (
            address.server.host.clone(),
            address.server.port,
            address.database.clone(),
        )
    }

    /// The name the pool logs in to the server with.
    pub fn server_user(&self) -> &str {
        &self.pool.user.server_username
    }

    /// A plugin's own table in the configuration of this pool.
    pub fn settings(&self, plugin: &str) -> Option<&toml::Table> {
        self.pool.settings.plugins.get(plugin)
    }

    /// A new connection to the pool, as an already authenticated client: a stream to speak the
    /// protocol on (`tokio_postgres::Config::connect_raw`, without TLS). It leads to the primary of the
    /// default shard. Each holds a server
    /// connection only while a transaction is open, like any client in transaction mode.
    ///
    /// Settings are for the startup message, or `SET LOCAL`: what a plugin SETs for the session is
    /// not followed to its next server connection, nor kept from that connection's next client.
    pub fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        self.pooler.internal(DetachedIo::Memory(theirs), &self.pool);
        ours
    }
}

impl fmt::Debug for PoolHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PoolHandle").field(self.identity()).finish()
    }
}
