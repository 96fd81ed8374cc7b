//! `ALTER STREAM TABLE`.

use pg_query::NodeEnum;
use pg_query::protobuf::{AlterTableStmt, AlterTableType, Node};
use pgcat::plugins::{ErrorFields, Severity, TransactionContext};

use super::lookup::{find_or_unfinished, installed, refused, stream_table};
use super::options::Options;
use super::parse::{borrow_as_view, relation};
use super::patience::{OURS, patiently};
use super::syntax::{Borrowed, QualifiedName, Words, literal};
use crate::conn::Error;
use crate::ddl;
use crate::engine::{self, Mode, StreamTableId};
use crate::session::Session;

/// `ALTER STREAM TABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alter {
    pub name: QualifiedName,
    pub if_exists: bool,
    pub action: Action,
}

/// What is to be altered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Set(Options),
    /// Back to the defaults.
    Reset {
        schedule: bool,
        refresh_mode: bool,
    },
    /// No refreshes but by `REFRESH STREAM TABLE`, until resumed.
    Suspend,
    Resume,
    /// What PostgreSQL does with any table (`RENAME TO`, `SET SCHEMA`): the statement for it.
    Table(String),
}

/// Reads the statement, which begins with these three words.
///
/// # Errors
/// As [`super::parse()`].
pub(super) fn parse(sql: &str, words: &Words<'_>) -> Result<Alter, Box<ErrorFields>> {
    let ends_with = |word| words.ends_with(&[word]) && !words.ends_with(&["to", word]);
    let control = if ends_with("suspend") {
        Some(Action::Suspend)
    } else if ends_with("resume") {
        Some(Action::Resume)
    } else {
        None
    };
    if let (Some(action), Some(last)) = (control, words.span(-1)) {
        // PostgreSQL reads the rest of it with an action that it knows.
        let text = format!("{}RESET (x)", &sql[..last.start]);
        let borrowed = borrow_as_view(&text, words);
        let NodeEnum::AlterTableStmt(statement) = borrowed.parse()? else {
            return Err(Borrowed::new(sql, 0..0, "").near(last.start));
        };
        return Ok(Alter {
            name: relation(statement.relation.as_ref())?,
            if_exists: statement.missing_ok,
            action,
        });
    }
    if words.outside_parentheses("as").is_some() {
        let error = ErrorFields::error("0A000", "ALTER STREAM TABLE ... AS is not supported yet");
        return Err(Box::new(error.hint(
            "Drop the stream table and create it again with the new query.",
        )));
    }
    let borrowed = borrow_as_view(sql, words);
    let (name, if_exists, action) = match borrowed.parse()? {
        NodeEnum::AlterTableStmt(statement) => {
            let action = options(&statement)?;
            (statement.relation, statement.missing_ok, action)
        }
        NodeEnum::RenameStmt(statement) => (
            statement.relation,
            statement.missing_ok,
            as_table(sql, words),
        ),
        NodeEnum::AlterObjectSchemaStmt(statement) => (
            statement.relation,
            statement.missing_ok,
            as_table(sql, words),
        ),
        _ => return Err(Box::new(unsupported())),
    };
    Ok(Alter {
        name: relation(name.as_ref())?,
        if_exists,
        action,
    })
}

/// The same of the table. Blanks keep the positions.
fn as_table(sql: &str, words: &Words<'_>) -> Action {
    let stream = words.span(1).unwrap_or_default();
    let blanks = " ".repeat(stream.len());
    Action::Table([&sql[..stream.start], &blanks, &sql[stream.end..]].concat())
}

fn unsupported() -> ErrorFields {
    ErrorFields::error("0A000", "this form of ALTER STREAM TABLE is not supported").hint(
        "Supported are SET (...), RESET (...), SUSPEND, RESUME, RENAME TO and SET SCHEMA. \
         Another owner creates the stream table anew.",
    )
}

fn options(statement: &AlterTableStmt) -> Result<Action, Box<ErrorFields>> {
    let [command] = statement.cmds.as_slice() else {
        return Err(Box::new(unsupported()));
    };
    let Some(NodeEnum::AlterTableCmd(command)) = &command.node else {
        return Err(Box::new(unsupported()));
    };
    let list: &[Node] = match command.def.as_ref().and_then(|def| def.node.as_ref()) {
        Some(NodeEnum::List(list)) => &list.items,
        _ => &[],
    };
    match command.subtype() {
        AlterTableType::AtSetRelOptions => Ok(Action::Set(Options::from_list(list)?)),
        AlterTableType::AtResetRelOptions => {
            let [mut schedule, mut refresh_mode] = [false; 2];
            for name in Options::names(list)? {
                match name {
                    "schedule" => schedule = true,
                    _ => refresh_mode = true,
                }
            }
            Ok(Action::Reset {
                schedule,
                refresh_mode,
            })
        }
        _ => Err(Box::new(unsupported())),
    }
}

/// Alters the stream table. `default_schedule` is the configured one.
///
/// # Errors
/// 42P01, 42809, 42501; 0A000 where the query does not allow the `refresh_mode`; PostgreSQL's own for what it does with
/// the table.
pub(crate) async fn run(
    session: &mut impl Session,
    alter: &Alter,
    default_schedule: &str,
) -> Result<(), Error> {
    if alter.if_exists
        && (!installed(session).await? || find_or_unfinished(session, &alter.name).await?.is_none())
    {
        let message = format!(
            "stream table \"{}\" does not exist, skipping",
            alter.name.name
        );
        session.notice(ErrorFields::new(Severity::Notice, "00000", message));
        return Ok(());
    }
    let (id, relation) = stream_table(session, &alter.name).await?;
    relation.require_owner()?;
    if let Action::Table(sql) = &alter.action {
        return match ddl::parse(sql) {
            Some(ddl) => ddl::run(session, sql, &ddl).await.map(drop),
            None => Err(refused(unsupported())),
        };
    }
    let changes = changes(&alter.action, default_schedule);
    if session.transaction() == TransactionContext::None {
        patiently(session, &[OURS], async |session| {
            apply(session, id, &changes).await
        })
        .await
    } else {
        apply(session, id, &changes).await
    }
}

/// What becomes of the stream table's row in the catalog.
struct Changes {
    schedule: Option<String>,
    refresh_mode: Option<Mode>,
    suspended: Option<bool>,
}

fn changes(action: &Action, default_schedule: &str) -> Changes {
    let mut changes = Changes {
        schedule: None,
        refresh_mode: None,
        suspended: None,
    };
    match action {
        Action::Set(options) => {
            changes.schedule.clone_from(&options.schedule);
            changes.refresh_mode = options.refresh_mode;
        }
        Action::Reset {
            schedule,
            refresh_mode,
        } => {
            changes.schedule = schedule.then(|| default_schedule.to_owned());
            changes.refresh_mode = refresh_mode.then_some(Mode::Auto);
        }
        Action::Suspend => changes.suspended = Some(true),
        Action::Resume => changes.suspended = Some(false),
        Action::Table(_) => {}
    }
    changes
}

async fn apply(
    session: &mut impl Session,
    id: StreamTableId,
    changes: &Changes,
) -> Result<(), Error> {
    if let Some(schedule) = &changes.schedule {
        session
            .query(&format!(
                "UPDATE pgtrickle.catalog SET schedule = {} WHERE id = {id}",
                literal(schedule)
            ))
            .await?;
    }
    if let Some(mode) = changes.refresh_mode {
        engine::set_mode(session, id, mode).await?;
    }
    match changes.suspended {
        Some(true) => {
            session
                .query(&format!(
                    "UPDATE pgtrickle.catalog SET status = 'suspended' \
                     WHERE id = {id} AND status IN ('active', 'error')"
                ))
                .await?;
        }
        Some(false) => {
            // One that waits for its first REFRESH goes on waiting.
            session
                .query(&format!(
                    "UPDATE pgtrickle.catalog SET status = 'active', failures = 0, last_error = NULL \
                     WHERE id = {id} AND status IN ('suspended', 'error') AND last_refresh IS NOT NULL"
                ))
                .await?;
        }
        None => {}
    }
    Ok(())
}
