//! demo
use std::io::Write;
use crate::cli::{DemoOptions, Format};
use crate::control::Failure;
pub(super) fn run(_options: &DemoOptions, _format: Format, _out: &mut dyn Write) -> Result<(), Failure> { Ok(()) }
