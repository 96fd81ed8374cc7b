//! Pools: which server connections there are, who holds them, and who waits for one.

pub mod local;
pub mod shared;
