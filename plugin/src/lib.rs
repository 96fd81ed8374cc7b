//! Stream tables: tables that follow their defining query incrementally.

mod catalog;
pub mod command;
pub mod conn;
pub mod ddl;
pub mod engine;
pub mod host_conn;
pub mod session;
