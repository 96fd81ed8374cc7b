//! Stream tables: tables that follow their defining query incrementally.

pub mod command;
