//! Several servers behind one pool: balancing, failover, shards, and reads on replicas.

mod commands;
mod health;
mod mirrors;
mod plugins;
mod replication;
mod servers;
mod splitting;
mod stage;
