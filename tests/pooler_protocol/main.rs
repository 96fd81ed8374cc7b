//! The wire protocol, message by message. The oracle of most of these tests: what a client gets
//! through the pooler is, byte for byte, what it gets from the server; and afterwards the server
//! connection serves another client as a fresh one would.

mod abandoned;
mod auth;
mod auth_query;
mod cancel;
mod chaos;
mod copy;
mod extended;
mod failure;
mod hba;
mod large;
mod limits;
mod limits_of_servers;
mod listen;
mod prepared;
mod prepared_ddl;
mod prepared_doubt;
mod prepared_shared;
mod random;
mod replication;
mod server_login;
mod settings;
mod shutdown;
mod simple;
mod stage;
mod startup;
mod stateful;
mod takeover;
mod timeouts;
mod tls_clients;
mod tls_servers;
mod unix_socket;
mod waiting;
