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

/// Runs `work` in a transaction of its own, again and again while somebody holds a lock it needs. Each
/// try waits for a lock only briefly, so that other writers never queue up behind us.
///
/// # Errors
/// That of the work, after a rollback; [`Error::LockNotAvailable`] once the patience is spent.
pub(super) async fn patiently<S: Session, T>(
    session: &mut S,
    mut work: impl AsyncFnMut(&mut S) -> Result<T, Error>,
) -> Result<T, Error> {
    persistently(session, async |session| {
        session.begin().await?;
        let done = async {
            session.query("SET LOCAL lock_timeout = '100ms'").await?;
            work(session).await
        };
        match done.await {
            Ok(value) => {
                session.commit().await?;
                Ok(value)
            }
            Err(error) => {
                session.rollback().await?;
                Err(error)
            }
        }
    })
    .await
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
