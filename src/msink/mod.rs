//! The file sink.

pub mod dir;
pub mod file;
pub mod manifest;
pub mod name;
pub mod private;
#[cfg(test)]
mod tests;
pub mod writer;

pub use name::FileKey;
