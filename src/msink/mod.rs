//! The file sink.

pub mod dir;
pub mod file;
pub mod manifest;
pub mod name;
#[cfg(test)]
mod tests;
pub mod writer;

pub use name::FileKey;
