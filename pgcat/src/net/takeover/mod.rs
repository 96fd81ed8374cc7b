//! Online restart: a new process takes the listening sockets over from the one that serves.
//!
//! ```text
//! new: takeover 1                       over the control socket, see [`control`]
//! old: sockets ["cancels", "tcp …", …]  with the descriptors; it goes on serving
//! new: ready ["tcp …", …]               all is open, the threads run
//! old: yours                            it has stopped to accept; what connects, waits in the backlog
//! new: serving                          and accepts
//! ```
//! Up to the last line the old process goes on as if nothing had happened, should the new one fail or
//! die. The sockets are never closed in between, so no connection is refused or reset. Then the old
//! process serves the clients it has until they leave, for `takeover_timeout`, and passes
//! [`cancels`] for them on.

mod cancels;
mod channel;
pub mod control;
mod giving;
mod taking;

use std::time::Duration;

pub use cancels::{Predecessors, serve as serve_cancels};
pub use giving::{HandedOver, Taker, offer};
pub use taking::{Inherited, ask};

const REQUEST: &str = "takeover 1";
const SOCKETS: &str = "sockets ";
const READY: &str = "ready ";
const YOURS: &str = "yours";
const SERVING: &str = "serving";
const REFUSED: &str = "refused: ";

/// The name of the socket that cancel requests are passed on by.
pub const CANCELS: &str = "cancels";

/// How long a new process may take to start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long either may take for what takes no time.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn is_own_user_or_root(user: u32) -> bool {
    user == own_user() || user == 0
}

/// The names in a message.
fn names(json: &str) -> Option<Vec<String>> {
    let list: serde_json::Value = serde_json::from_str(json).ok()?;
    let names = list.as_array()?.iter();
    names.map(|name| name.as_str().map(str::to_owned)).collect()
}
