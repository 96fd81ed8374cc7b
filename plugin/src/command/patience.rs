//! Transactions that need locks which others may hold.

use std::time::{Duration, Instant};

use crate::conn::Error;
use crate::session::Session;

/// How long to try before giving up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries: long enough that waiting writers get through, short enough not to be noticed.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Waits on the server, where a cancel request finds the client.
///
/// # Errors
/// 57014 where one does.
pub(super) async fn sleep(session: &mut impl Session, pause: Duration) -> Result<(), Error> {
    let sql = format!("SELECT pg_catalog.pg_sleep({})", pause.as_secs_f64());
    session.query(&sql).await.map(|_| ())
}

/// What a try waits for a lock: so that other writers never queue up behind us for long.
const BRIEFLY: Duration = Duration::from_millis(100);

/// The tables of stream tables, their sources, and what is behind them, as a query for OIDs. Autovacuum comes to all of them.
pub(super) const OURS: &str =
    "SELECT relid FROM pgtrickle.buffer UNION ALL SELECT relid FROM pgtrickle.catalog UNION ALL
    SELECT oid FROM pg_catalog.pg_class
    WHERE relnamespace OPERATOR(pg_catalog.=) 'pgtrickle'::pg_catalog.regnamespace::pg_catalog.oid";

/// Runs `work` in a transaction of its own, again and again while somebody holds a lock it needs. Each
/// try waits for a lock only briefly, but for one that waits until autovacuum makes way, where it has one of `tables`, queries
/// for OIDs.
///
/// # Errors
/// That of the work, after a rollback; [`Error::LockNotAvailable`] once the patience is spent.
pub(super) async fn patiently<S: Session, T>(
    session: &mut S,
    tables: &[&str],
    mut work: impl AsyncFnMut(&mut S) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut next_wait = BRIEFLY;
    let mut has_waited = false;
    persistently(session, async |session| {
        session.begin().await?;
        let wait = std::mem::replace(&mut next_wait, BRIEFLY);
        let done = async {
            let sql = format!("SET LOCAL lock_timeout = {}", wait.as_millis());
            session.query(&sql).await?;
            work(session).await
        };
        match done.await {
            Ok(value) => {
                session.commit().await?;
                Ok(value)
            }
            Err(error) => {
                session.rollback().await?;
                if matches!(error, Error::LockNotAvailable(_)) && !has_waited {
                    for tables in tables {
                        if let Some(wait) = until_autovacuum_makes_way(session, tables).await? {
                            has_waited = true;
                            next_wait = wait;
                        }
                    }
                }
                Err(error)
            }
        }
    })
    .await
}

/// How long one has to wait for autovacuum to be cancelled, if it has one of the tables and nobody else has: the server does that
/// for those only who have waited for `deadlock_timeout`. It keeps a large table for hours.
async fn until_autovacuum_makes_way(
    session: &mut impl Session,
    tables: &str,
) -> Result<Option<Duration>, Error> {
    // Its workers have no user, which everybody may see; what kind of process it is not everybody may. The caller's path is
    // in force: every name and operator has its schema.
    let others = "SELECT FROM pg_catalog.pg_locks o WHERE o.relation OPERATOR(pg_catalog.=) l.relation
            AND o.database OPERATOR(pg_catalog.=) l.database AND o.pid OPERATOR(pg_catalog.<>) l.pid
            AND o.granted AND o.mode OPERATOR(pg_catalog.<>) ALL ('{AccessShareLock,RowShareLock}'::pg_catalog.text[])";
    let sql = format!(
        "SELECT s.setting FROM pg_catalog.pg_settings s WHERE s.name OPERATOR(pg_catalog.=) 'deadlock_timeout'
         AND EXISTS (SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
            WHERE a.datid OPERATOR(pg_catalog.=) l.database AND a.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
                AND a.usesysid IS NULL AND l.granted AND l.mode OPERATOR(pg_catalog.=) 'ShareUpdateExclusiveLock'
                AND NOT EXISTS ({others}) AND EXISTS (SELECT FROM pg_catalog.pg_class t
                    WHERE t.oid OPERATOR(pg_catalog.=) ANY (ARRAY({tables}))
                        AND l.relation OPERATOR(pg_catalog.=) ANY (ARRAY[t.oid, t.reltoastrelid])))"
    );
    let rows = match session.query(&sql).await {
        Err(error @ Error::Connection(_)) => return Err(error),
        Err(error) if error.code() == "57014" => return Err(error),
        // No stream table has been there before; or the server is so hardened that these views are not to be had.
        Err(_) => return Ok(None),
        Ok(rows) => rows,
    };
    let milliseconds = rows.first().and_then(|row| row.text(0)?.parse().ok());
    let wait = milliseconds.map(|ms| Duration::from_millis(ms) + Duration::from_millis(500));
    Ok(wait.filter(|wait| *wait < PATIENCE / 2))
}

/// The same for work that runs transactions, and ends them.
///
/// # Errors
/// As [`patiently`].
pub(super) async fn persistently<S: Session, T>(
    session: &mut S,
    mut work: impl AsyncFnMut(&mut S) -> Result<T, Error>,
) -> Result<T, Error> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match work(session).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let again = matches!(
            error,
            Error::LockNotAvailable(_) | Error::Conflict(_) | Error::Busy
        );
        if !again || started.elapsed() > PATIENCE {
            return Err(error);
        }
        sleep(session, pause).await?;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
