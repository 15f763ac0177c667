//! demo
use crate::cli::{DemoOptions, Format};
use crate::control::Failure;
use std::io::Write;
pub(super) fn run(_options: &DemoOptions, _format: Format, _out: &mut dyn Write) -> Result<(), Failure> {
    Ok(())
}
