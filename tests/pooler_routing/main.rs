//! Several servers behind one pool: balancing, failover, shards, and reads on replicas.

mod servers;
mod stage;
