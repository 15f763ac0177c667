//! The file sink.

pub mod dir;
pub mod file;
pub mod name;

pub use name::FileKey;
