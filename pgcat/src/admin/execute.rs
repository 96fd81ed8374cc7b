//! What the commands do.

use std::rc::Rc;

use tokio::sync::oneshot;

use super::command::Command;
use super::control;
use super::show::{Row, Show};
use super::state::State;
use super::{Dialect, Failure, Privilege};
use crate::net::orders::Order;
use crate::net::threads::ThreadContext;
use crate::plugins::Column;
use crate::wire::error_fields::{ErrorFields, Severity};

/// What a command has come to.
pub(super) struct Outcome {
    pub rows: Vec<Row>,
    pub tag: String,
    pub notice: Option<ErrorFields>,
}

impl Outcome {
    fn done(tag: impl Into<String>) -> Self {
        Self {
            rows: Vec::new(),
            tag: tag.into(),
            notice: None,
        }
    }
}

/// The columns of a command's result, empty if it has none.
pub(super) fn columns(command: &Command, dialect: Dialect) -> Vec<Column> {
    match command {
        Command::Show(show) => show.columns(dialect),
        Command::ShowOfPlugin(table) => table.columns(),
        Command::Ban { .. } | Command::Unban { .. } => {
            ["db", "user", "role", "host"].map(Column::text).into()
        }
        Command::Shutdown(_) if dialect == Dialect::Pgcat => vec![Column::text("success")],
        _ => Vec::new(),
    }
}

pub(super) async fn run(
    thread: &Rc<ThreadContext>,
    command: &Command,
    dialect: Dialect,
    privilege: Privilege,
) -> Result<Outcome, Failure> {
    match command {
        Command::Show(Show::Help) => return Ok(help(thread, dialect)),
        Command::Show(show) => {
            let state = State::of(&thread.pooler).await;
            return Ok(Outcome {
                rows: show.rows(dialect, &state),
                tag: show.tag(dialect).to_owned(),
                notice: None,
            });
        }
        Command::ShowOfPlugin(table) => {
            let mut plugins = thread.pooler.plugins.iter();
            let plugin = plugins.find(|plugin| plugin.tables().contains(table));
            return Ok(Outcome {
                rows: plugin.map_or_else(Vec::new, |plugin| plugin.rows(table)),
                ..Outcome::done("SHOW")
            });
        }
        Command::Set { name } => return set(thread, name, dialect),
        _ => (),
    }
    if privilege != Privilege::Admin {
        return Err(Failure::NotAllowed);
    }
    let pooler = &thread.pooler;
    let mut rows = Vec::new();
    let tag = match command {
        Command::Ban { host, seconds } => {
            rows = control::ban(thread, host, *seconds);
            "BAN"
        }
        Command::Unban { host } => {
            rows = control::unban(thread, host);
            "UNBAN"
        }
        Command::Disable(database) => {
            control::set_disabled(thread, database, true)?;
            "DISABLE"
        }
        Command::Enable(database) => {
            control::set_disabled(thread, database, false)?;
            "ENABLE"
        }
        Command::Kill(target) => {
            control::kill(thread, target).await?;
            "KILL"
        }
        Command::KillClient(id) => {
            control::kill_client(thread, *id).await?;
            "KILL_CLIENT"
        }
        Command::Pause(target) => {
            control::pause(thread, target, dialect).await?;
            "PAUSE"
        }
        Command::Resume(target) => {
            control::resume(thread, target, dialect).await?;
            "RESUME"
        }
        Command::Reconnect(target) => {
            control::reconnect(thread, target).await?;
            "RECONNECT"
        }
        Command::WaitClose(target) => {
            control::wait_close(thread, target).await?;
            "WAIT_CLOSE"
        }
        Command::Suspend => {
            control::suspend(thread).await;
            "SUSPEND"
        }
        Command::Shutdown(ending) => {
            let ordered = pooler.orders.send(Order::ShutDown(*ending)).is_ok();
            if dialect == Dialect::Pgcat {
                let success = if ordered { "t" } else { "f" };
                rows.push(vec![Some(success.to_owned())]);
            }
            "SHUTDOWN"
        }
        Command::Reload => {
            let (answer, answered) = oneshot::channel();
            let ended = || "the pooler is shutting down".to_owned();
            let outcome = match pooler.orders.send(Order::Reload(answer)) {
                Ok(()) => answered.await.unwrap_or_else(|_| Err(ended())),
                Err(_) => Err(ended()),
            };
            outcome.map_err(Failure::Reload)?;
            "RELOAD"
        }
        Command::Set { .. } | Command::Show(_) | Command::ShowOfPlugin(_) => {
            unreachable!("they are done above")
        }
    };
    Ok(Outcome {
        rows,
        ..Outcome::done(tag)
    })
}

/// Drivers SET this and that as they connect; nothing here depends on it.
fn set(thread: &ThreadContext, name: &str, dialect: Dialect) -> Result<Outcome, Failure> {
    let settings = Show::settings(dialect, &thread.pooler.config());
    if settings.iter().any(|row| row[0].as_deref() == Some(name)) {
        return Err(Failure::Other(format!(
            "{name} cannot be SET: change it in the file, then RELOAD"
        )));
    }
    Ok(Outcome {
        notice: Some(ErrorFields::new(Severity::Notice, "00000", "SET ignored")),
        ..Outcome::done("SET")
    })
}

fn help(thread: &ThreadContext, dialect: Dialect) -> Outcome {
    let mut detail = String::new();
    let tables = thread
        .pooler
        .plugins
        .iter()
        .flat_map(|plugin| plugin.tables());
    let names: Vec<_> = Show::names()
        .chain(tables.map(|table| table.name))
        .collect();
    for names in names.chunks(6) {
        detail.push_str(&format!("\n\tSHOW {}", names.join("|")));
    }
    for command in [
        "SET key = arg",
        "RELOAD",
        "PAUSE [<db>[, <user>]]",
        "RESUME [<db>[, <user>]]",
        "DISABLE <db>",
        "ENABLE <db>",
        "RECONNECT [<db>[, <user>]]",
        "KILL [<db>[, <user>]]",
        "KILL_CLIENT <id>",
        "SUSPEND",
        "WAIT_CLOSE [<db>[, <user>]]",
        "BAN <host> <seconds>",
        "UNBAN <host>",
        "SHUTDOWN [WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]",
    ] {
        detail.push_str(&format!("\n\t{command}"));
    }
    let notice = ErrorFields::new(Severity::Notice, "00000", "Console usage").detail(detail);
    Outcome {
        notice: Some(notice),
        ..Outcome::done(Show::Help.tag(dialect))
    }
}
