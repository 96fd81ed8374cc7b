//! The plugin as the pooler sees it.

use std::sync::Arc;

use pgcat::plugins::{
    Action, AdminTable, Column, Completion, ErrorFields, LocalFuture, Metric, Page, Plugin,
    PoolHandle, PoolIdentity, ServerHandle, SessionView, Statement,
};

use crate::command::{self, Command};
use crate::conn::Error;
use crate::ddl::{self, SourceDdl};
use crate::host_conn::HostConn;
use crate::observe;
use crate::refresh::{Signal, Signals, Worker};
use crate::settings::Settings;

/// The plugin's name in the configuration.
const NAME: &str = "stream_tables";

/// Stream tables: `CREATE STREAM TABLE` and what follows from it.
#[derive(Default)]
pub struct StreamTables {
    signals: Signals,
    worker: Worker,
}

impl StreamTables {
    /// The plugin, before any pool has been announced to it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Plugin for StreamTables {
    fn name(&self) -> &'static str {
        NAME
    }

    fn wants(&self, _pool: &PoolIdentity, sql: &[u8]) -> bool {
        command::wants(sql)
    }

    fn statement(&self, session: &SessionView<'_>, sql: &str) -> Action {
        // A section with a mistake in it has been reported at start, and its pool is left alone.
        let settings = session
            .settings
            .and_then(|table| Settings::read(table).ok());
        let Some(settings) = settings.filter(|settings| settings.enabled) else {
            return Action::Allow;
        };
        let (work, columns) = match command::parse(sql) {
            Some(Err(error)) => return Action::Deny(error),
            Some(Ok(Command::Unsupported(name))) => return Action::Deny(unsupported(name)),
            Some(Ok(command)) => {
                let columns = command::columns(&command);
                (Work::Command(command), columns)
            }
            None => match ddl::parse(sql) {
                Some(ddl) => (
                    Work::SourceDdl {
                        sql: sql.to_owned(),
                        ddl,
                    },
                    Vec::new(),
                ),
                None => return Action::Allow,
            },
        };
        Action::Handle(Arc::new(Handled {
            work,
            columns,
            default_schedule: settings.schedule,
            signal: self.signals.of(session.pool).cloned(),
        }))
    }

    fn committed(&self, pool: &PoolIdentity) {
        if let Some(signal) = self.signals.of(pool) {
            signal.committed();
        }
    }

    fn keys(&self) -> &'static [&'static str] {
        Settings::KEYS
    }

    fn check(&self, settings: &toml::Table) -> Result<(), String> {
        Settings::read(settings).map(drop)
    }

    fn start(&self, pools: &[PoolHandle]) {
        let enabled = pools.iter().filter_map(|pool| {
            let settings = match Settings::read(pool.settings(NAME)?) {
                Ok(settings) => settings,
                Err(mistake) => {
                    let PoolIdentity { database, user } = pool.identity();
                    log::error!(
                        "stream tables are off for pool {database} of user {user}: [plugins.{NAME}] {mistake}"
                    );
                    return None;
                }
            };
            settings.enabled.then(|| (pool.clone(), settings))
        });
        if let Err(error) = self.worker.serve(enabled.collect(), &self.signals) {
            log::error!("stream tables are not refreshed: {error}");
        }
    }

    fn stop(&self) {
        self.worker.stop();
    }

    fn tables(&self) -> &'static [AdminTable] {
        observe::TABLES
    }

    fn rows(&self, _table: &AdminTable) -> Vec<Vec<Option<String>>> {
        observe::rows(self.worker.board())
    }

    fn metrics(&self) -> Vec<Metric> {
        observe::metrics(self.worker.board())
    }

    fn page(&self, path: &str) -> Option<Page> {
        (path == "/stream-tables").then(|| observe::page(self.worker.board()))
    }
}

fn unsupported(name: &str) -> Box<ErrorFields> {
    Box::new(ErrorFields::error(
        "0A000",
        format!("{name} is not supported yet"),
    ))
}

/// A statement that the plugin answers.
struct Handled {
    work: Work,
    columns: Vec<Column>,
    default_schedule: String,
    /// The database's bell, rung when the catalog changes.
    signal: Option<Arc<Signal>>,
}

enum Work {
    Command(Command),
    SourceDdl { sql: String, ddl: SourceDdl },
}

impl Statement for Handled {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn execute<'a>(
        &'a self,
        server: &'a mut ServerHandle<'_>,
    ) -> LocalFuture<'a, Result<Completion, Box<ErrorFields>>> {
        let memory = match &self.signal {
            Some(signal) => Arc::clone(signal.memory()),
            None => Arc::default(),
        };
        Box::pin(async move { Ok(self.run(HostConn::new(server, memory)).await?) })
    }
}

impl Handled {
    async fn run(&self, mut session: HostConn<'_, '_>) -> Result<Completion, Error> {
        let (completion, changed) = match &self.work {
            Work::Command(command) => {
                let outcome = command::run(&mut session, command, &self.default_schedule).await?;
                (
                    Completion {
                        rows: outcome.rows,
                        tag: outcome.tag.to_owned(),
                    },
                    outcome.changed,
                )
            }
            Work::SourceDdl { sql, ddl } => {
                let outcome = ddl::run(&mut session, sql, ddl).await?;
                (
                    Completion {
                        rows: Vec::new(),
                        tag: outcome.tag,
                    },
                    outcome.touched,
                )
            }
        };
        if let Some(signal) = self.signal.as_ref().filter(|_| changed) {
            signal.changed_catalog();
        }
        Ok(completion)
    }
}
