//! The demo's own parts: a Kafka inside the process, generated logs, a home to run in, and the account at the end.
//!
//! The pipeline that it shows is the service's, started by the application. What must become of each record is known when
//! it is generated ([`records::Kind::expected`]), so the demo checks itself: see `summary`.

pub(crate) mod home;
pub(crate) mod kafka;
pub(crate) mod progress;
pub mod records;
pub(crate) mod summary;
