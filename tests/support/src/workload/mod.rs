//! A random load of writes over a fixed set of sources, and the stream tables that follow them:
//! what the oracle test and the crash test have in common.

mod load;
mod schema;
mod writer;

pub use load::{Disturbances, Load, Report};
pub use schema::{SOURCES, StreamTable, stream_tables};
