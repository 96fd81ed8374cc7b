//! PgCat's `query_logger`: every statement, into the log.

use super::{Action, Plugin, PoolIdentity, SessionView};

pub struct QueryLogger;

impl Plugin for QueryLogger {
    fn name(&self) -> &'static str {
        "query_logger"
    }

    fn wants(&self, _pool: &PoolIdentity, _sql: &[u8]) -> bool {
        true
    }

    fn statement(&self, session: &SessionView<'_>, sql: &str) -> Action {
        let PoolIdentity { database, user } = session.pool;
        log::info!("[pool: {database}][user: {user}] {}", sql.trim());
        Action::Allow
    }
}
