//! The plugin interface: what code outside the pooler may see and do.
//!
//! A plugin is a static trait object registered at start (no dynamic loading, so no version lock).
//! It may look at SQL before it is forwarded, answer it itself **on the client's own server
//! connection and inside the client's own transaction**, hear of commits, and run background work
//! through an in-process client of a pool, which is an ordinary client to everything else.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

mod intercept;
mod observe;
mod query_logger;
mod server_handle;
mod table_access;

pub use crate::net::pool_handle::PoolHandle;
pub use crate::wire::error_fields::{ErrorFields, Severity};
pub use observe::{AdminTable, Metric, MetricKind, Page, Sample};
pub use server_handle::{PluginQuery, QueryResult, ServerHandle, TransactionContext};

/// A future that stays on the thread it was made on.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A plugin. One value serves all threads and all pools.
pub trait Plugin: Send + Sync + 'static {
    /// The plugin's name, as in `[plugins.<name>]` and in log lines.
    fn name(&self) -> &'static str;

    /// A byte test, nanoseconds, no parse: could this text hold a statement for
    /// [`Plugin::statement`]? Called for every Query and Parse message, with the whole text (of a
    /// message over 1 MiB: its first MiB).
    fn wants(&self, pool: &PoolIdentity, sql: &[u8]) -> bool;

    /// What to do with one statement. The host has split a Query of several statements; `sql` is one
    /// of them, without its semicolon, surrounding white space and comments kept.
    fn statement(&self, session: &SessionView<'_>, sql: &str) -> Action;

    /// A transaction that may have written has committed on this pool (by its command tags). A hint:
    /// writes by functions in a SELECT or in a DO block do not show. Called on the client's hot path:
    /// must not block, allocate or make a system call in the common case.
    fn committed(&self, _pool: &PoolIdentity) {}

    /// The keys of the plugin's table of the configuration, besides `enabled`. What else is in it is
    /// warned of, and left out.
    fn keys(&self) -> &'static [&'static str] {
        &[]
    }

    /// Validates the plugin's table of the configuration, whenever that is read: before a start, by
    /// `pgcat check`, and before a reload.
    ///
    /// # Errors
    /// The key, a colon, a space, and what is wrong with it.
    fn check(&self, _settings: &toml::Table) -> Result<(), String> {
        Ok(())
    }

    /// The pooler is about to serve clients. Called again after a reload, with the pools as they are
    /// now. Background work runs on the plugin's own threads.
    fn start(&self, _pools: &[PoolHandle]) {}

    /// The pooler is shutting down, or another process does the background work from now on; returns when
    /// it has ended here. Clients that are still connected go on sending statements.
    fn stop(&self) {}

    /// Tables that the admin databases show besides their own.
    fn tables(&self) -> &'static [AdminTable] {
        &[]
    }

    /// The rows of one of [`Plugin::tables`], as in [`Completion::rows`]. As all that shows the plugin, it
    /// is made of what the plugin knows already: it must not wait for a server.
    fn rows(&self, _table: &AdminTable) -> Vec<Vec<Option<String>>> {
        Vec::new()
    }

    /// What Prometheus is told. Anybody who reaches the port may read it.
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }

    /// An answer to `GET path` on the port for metrics, if the path is the plugin's.
    fn page(&self, _path: &str) -> Option<Page> {
        None
    }
}

/// Which pool (database and user) a call is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolIdentity {
    /// The database name clients connect to: the key of `[pools.<database>]`.
    pub database: String,
    /// The user name clients log in with: a `username` of the pool.
    pub user: String,
}

/// PgCat's own plugins. (`prewarmer` is none by this interface: see [`crate::pool::local`].)
pub(crate) fn built_in() -> [Arc<dyn Plugin>; 3] {
    // The log is to have what clients sent, whatever the others make of it.
    [
        Arc::new(query_logger::QueryLogger),
        Arc::new(table_access::TableAccess),
        Arc::new(intercept::Intercept),
    ]
}

/// What a plugin may know about the session a statement came from.
#[derive(Debug)]
pub struct SessionView<'a> {
    /// The session's pool.
    pub pool: &'a PoolIdentity,
    /// The plugin's own table of the configuration for this pool (`None`: not configured).
    pub settings: Option<&'a toml::Table>,
}

/// A plugin's decision about a statement.
pub enum Action {
    /// Not mine: forward it.
    Allow,
    /// Refuse it with this error, as if the server had.
    Deny(Box<ErrorFields>),
    /// Forward this text instead.
    Rewrite(String),
    /// The plugin answers. The host calls [`Statement::execute`] when the server would have executed
    /// the statement, and owns all framing.
    Handle(Arc<dyn Statement>),
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("Allow"),
            Self::Deny(error) => f.debug_tuple("Deny").field(error).finish(),
            Self::Rewrite(sql) => f.debug_tuple("Rewrite").field(sql).finish(),
            Self::Handle(_) => f.write_str("Handle(..)"),
        }
    }
}

/// A statement a plugin answers. Prepared once, it may be executed many times.
pub trait Statement: Send + Sync + 'static {
    /// The columns of the result, empty if it returns no rows (Describe answers NoData then).
    fn columns(&self) -> &[Column];

    /// Runs the statement on the client's own server connection, under the client's role, in the
    /// client's transaction where there is one.
    ///
    /// # Errors
    /// The error to show the client. The host puts the transaction into the failed state, as the
    /// server does for an error of its own; a plugin that began a transaction (see
    /// [`ServerHandle::begin`]) need not roll it back.
    fn execute<'a>(
        &'a self,
        server: &'a mut ServerHandle<'_>,
    ) -> LocalFuture<'a, Result<Completion, Box<ErrorFields>>>;
}

/// A result column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The name in the RowDescription.
    pub name: String,
    /// The type's OID, e.g. 25 for text. Values are given as text; where a client asks for binary, the
    /// host converts text, int4, int8, bool and float8 and refuses others.
    pub type_oid: u32,
}

impl Column {
    /// A column of type text.
    pub fn text(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            type_oid: 25,
        }
    }
}

/// What a handled statement returns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Completion {
    /// Values in text form, one per column of [`Statement::columns`]; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
    /// The command tag, e.g. `CREATE STREAM TABLE`.
    pub tag: String,
}
