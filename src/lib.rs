//! `mtga` moves JSON logs from Kafka into files of `ThinkingData` events: every record exactly once.
//!
//! The modules stand in the order in which a record meets them: [`msource`] takes records from Kafka in blocks,
//! [`transform`] turns each into a line, [`msink`] writes the lines. ARCHITECTURE.md has the picture.

#![warn(missing_docs)]

pub mod app;
pub mod block;
pub mod cli;
pub mod commentjson;
pub mod config;
pub mod control;
pub mod daemon;
pub mod delivery;
pub mod demo;
pub mod durable;
pub mod fault;
pub mod flock;
pub mod limits;
pub mod lock;
pub mod logging;
pub mod msink;
pub mod msource;
pub mod panics;
pub mod privileges;
pub mod record;
pub mod regular;
pub mod settings;
pub mod signals;
pub mod synced;
pub mod terminal;
pub mod transform;
pub mod zone;
