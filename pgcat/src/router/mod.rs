//! Looking into SQL text, and deciding which servers may run it. Nothing here looks at SQL unless
//! something configured needs it.

pub mod lexer;
pub mod route;
pub mod statements;
