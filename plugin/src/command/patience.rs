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
const BRIEFLY: &str = "100ms";

/// Runs `work` in a transaction of its own, again and again while somebody holds a lock it needs. Each
/// try waits for a lock only briefly, but for one that waits until autovacuum makes way.
///
/// # Errors
/// That of the work, after a rollback; [`Error::LockNotAvailable`] once the patience is spent.
pub(super) async fn patiently<S: Session, T>(
    session: &mut S,
    mut work: impl AsyncFnMut(&mut S) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut made_way = false;
    let mut wait = BRIEFLY.to_owned();
    persistently(session, async |session| {
        session.begin().await?;
        let done = async {
            let wait = std::mem::replace(&mut wait, BRIEFLY.to_owned());
            let sql = format!("SET LOCAL lock_timeout = '{wait}'");
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
                if matches!(error, Error::LockNotAvailable(_)) && !made_way {
                    let long = until_autovacuum_makes_way(session).await?;
                    if let Some(long) = long {
                        made_way = true;
                        wait = long;
                    }
                }
                Err(error)
            }
        }
    })
    .await
}

/// How long one has to wait for autovacuum to be cancelled, if it works on any table: the server does that for those only who
/// have waited for `deadlock_timeout`. A large table keeps it busy for hours.
async fn until_autovacuum_makes_way(session: &mut impl Session) -> Result<Option<String>, Error> {
    // Its workers have no user, which everybody may see; what kind of process it is not everybody may.
    let sql = "SELECT pg_catalog.current_setting('deadlock_timeout')::pg_catalog.interval + '0.5 seconds'
         FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_locks l ON l.pid = a.pid
         WHERE a.datname = pg_catalog.current_database() AND a.usesysid IS NULL AND l.relation IS NOT NULL
            AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted LIMIT 1";
    let sql = format!(
        "SELECT pg_catalog.ceil(pg_catalog.date_part('epoch', x.wait) * 1000)::pg_catalog.text || 'ms' FROM ({sql}) x(wait)"
    );
    let rows = session.query(&sql).await?;
    Ok(rows.first().and_then(|row| row.text(0)).map(str::to_owned))
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
