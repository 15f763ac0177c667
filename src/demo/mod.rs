//! The demo: a whole pipeline on generated logs.

pub mod records;
