//! Looking into SQL text, and deciding which servers may run it. Nothing here looks at SQL unless
//! something configured needs it.
//!
//! A client's own [`choice`], by its [`command`]s, and what [`comment`] and [`analysis`] find in a
//! statement make a [`route`].

pub mod analysis;
pub mod choice;
pub mod command;
pub mod comment;
pub mod keys;
pub mod lexer;
pub mod route;
mod sharding;
pub mod statements;
