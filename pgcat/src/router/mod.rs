//! Looking into SQL text. Nothing here is called unless something configured needs it.

pub mod lexer;
pub mod statements;
