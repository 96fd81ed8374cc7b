//! The admin databases `pgcat` and `pgbouncer`: what they show, and what they do.

mod columns;
mod control;
mod login;
mod metrics;
mod plugins;
mod protocol;
mod reload;
mod stage;
mod statistics;
