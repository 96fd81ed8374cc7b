//! Several servers behind one pool: balancing, failover, shards, and reads on replicas.

mod health;
mod servers;
mod stage;
