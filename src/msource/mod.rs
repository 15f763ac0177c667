//! The Kafka source.

pub mod payload;
