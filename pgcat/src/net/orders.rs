//! What the thread that listens can be told, by signals and by administrators.

use tokio::sync::oneshot;

/// See the module's text.
#[derive(Debug)]
pub enum Order {
    /// The answer is what is wrong with the configuration.
    Reload(oneshot::Sender<Result<(), String>>),
    ShutDown(Ending),
}

/// What the end of the pooler waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Transactions, for `shutdown_timeout`. Clients are told as they become idle.
    Graceful,
    /// Nothing.
    Immediate,
    /// Clients, until they leave by themselves; new ones are refused.
    WaitForClients,
    /// The same for `takeover_timeout`, then as [`Ending::Graceful`]. New clients are another process's.
    HandedOver,
}
