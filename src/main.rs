//! The `mtga` command.

fn main() {}
