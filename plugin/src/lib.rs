//! Stream tables: tables that follow their defining query incrementally.

mod capture;
mod catalog;
pub mod command;
pub mod conn;
pub mod ddl;
mod delta;
pub mod engine;
pub mod host_conn;
mod observe;
mod plan;
mod plugin;
mod refresh;
pub mod session;
mod settings;

pub use plugin::StreamTables;
pub use settings::Settings;
