//! The file sink.

pub mod dir;
pub mod name;
