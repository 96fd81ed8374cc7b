//! Fuzzing: bytes that nobody should send, from both sides, and what must hold all the same.
//!
//! On stable Rust, without instrumentation: the inputs are made by a grammar and then mutated, which
//! gets further into a protocol than a search that has to find out by itself what a length is. Every
//! case has a seed. `FUZZ_SECONDS` is the length of each target (default 3), `FUZZ_SEED` replays one
//! case. An input that failed is kept in `tests/fuzz/corpus`, and tried first from then on.

mod clients;
mod ledger;
mod mutate;
mod parsers;
mod run;
mod scripted;
mod servers;
