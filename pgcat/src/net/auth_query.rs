//! `auth_query`: asking the server itself for what a user is verified with.
//!
//! Asked at every login, on a pool of its own that no client can reach: a changed password counts at
//! once, and so does what the query itself looks at, such as `rolvaliduntil`.

use std::rc::Rc;

use super::threads::ThreadContext;
use crate::error::Error;
use crate::pool::local::LocalPool;
use crate::pool::shared::PoolShared;
use crate::router::route::Route;
use crate::session::auth::Secret;
use crate::wire::error_fields::ErrorFields;

/// What is known of the password of the pool's user; `None`: no such user, or no password.
///
/// # Errors
/// [`Error::Refused`] if the query cannot be run or does not answer as it has to.
pub(super) async fn secret(
    thread: &Rc<ThreadContext>,
    pool: &PoolShared,
    query: &str,
) -> Result<Option<Secret>, Error> {
    let failed = |reason: String| {
        let database = &pool.identity.database;
        // PgCat's words, which scripts look for.
        log::error!(
            "Error trying to obtain password from auth_query for pool {database}: {reason}"
        );
        Error::Refused(Box::new(ErrorFields::fatal("58000", "auth_query failed")))
    };
    let user = &pool.identity.user;
    let asking = thread.asking_pool(&pool.identity.database);
    let asking = asking.ok_or_else(|| failed("no pool to ask it on".to_owned()))?;
    let rows = ask(thread, &asking, &with_user(query, user))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let mut rows = rows.into_iter();
    let Some(row) = rows.next() else {
        return Ok(None);
    };
    let [name, password] = <[_; 2]>::try_from(row)
        .map_err(|row| failed(format!("a row of {} columns in place of 2", row.len())))?;
    if rows.next().is_some() {
        return Err(failed("more than one row".to_owned()));
    }
    if name.as_ref() != Some(user) {
        return Err(failed("a row for another user".to_owned()));
    }
    Ok(password
        .filter(|p| !p.is_empty())
        .map(|p| Secret::parse(&p)))
}

async fn ask(
    thread: &Rc<ThreadContext>,
    pool: &Rc<LocalPool>,
    sql: &str,
) -> Result<Vec<Vec<Option<String>>>, Error> {
    let route = Route::primary_of(&pool.shared.settings);
    let mut server = pool.checkout(thread, route).await?;
    let outcome = server.simple_query(sql, &mut Vec::new()).await;
    match outcome {
        Ok(result) => {
            pool.release(thread, server);
            Ok(result.rows)
        }
        Err(error @ Error::ServerRefused(_)) => {
            pool.release(thread, server);
            Err(error)
        }
        Err(error) => {
            pool.close(server);
            Err(error)
        }
    }
}

/// The query with the user's name for `$1`. In PgCat's documentation the parameter stands in quotes, in
/// PgBouncer's it does not. The name is the word of somebody who has not logged in yet.
fn with_user(query: &str, user: &str) -> String {
    let name = literal(user);
    query.replace("'$1'", "$1").replace("$1", &name)
}

fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_stays_a_name() {
        for query in ["SELECT f($1)", "SELECT f('$1')"] {
            assert_eq!(with_user(query, "joe"), "SELECT f('joe')");
            assert_eq!(with_user(query, "o'x"), "SELECT f('o''x')");
            assert_eq!(
                with_user(query, r"\'; DROP TABLE t --"),
                r"SELECT f( E'\\''; DROP TABLE t --')"
            );
        }
        // What is in the name is not a parameter.
        assert_eq!(with_user("SELECT $1", "$1"), "SELECT '$1'");
    }
}
