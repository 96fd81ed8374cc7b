//! Pools: which server connections there are, who holds them, and who waits for one.
//!
//! A pool (one user of one database) has shards, a shard has servers ([`address`]), and each server
//! has its own limit of connections and its own queue ([`slots`]) and is found to be well or not by itself ([`health`]). Idle connections belong to a thread
//! ([`local`]). Which server a statement goes to is decided by [`balance`], among those its
//! [`crate::router::route::Route`] allows. How far replicas have come is found out by `watch` and kept in [`replay`].
//! What is counted is in [`statistics`].

pub mod activity;
pub mod address;
pub mod analyser;
mod balance;
pub mod functions;
pub mod gate;
pub mod health;
pub mod limits;
pub mod local;
mod looks;
pub mod queue;
pub mod replay;
pub mod shared;
pub mod slots;
pub mod stateful;
pub mod statistics;
pub mod wal;
mod watch;
