//! A value of a record as a part of a file name: harmless in a path, in a glob and in a shell, and no two values alike.

use std::fmt::Write as _;

/// The part for `value`.
pub(in crate::msink) fn sanitised(value: &str) -> String {
    let mut text = String::new();
    push_sanitised(&mut text, Some(value));
    text
}

/// Appends the part for a value, `_` for none.
pub(super) fn push_sanitised(name: &mut String, value: Option<&str>) {
    let value = match value {
        None | Some("") => return name.push('_'),
        Some("_") => return name.push_str("%5F"),
        Some(value) => value,
    };
    for (at, char) in value.char_indices() {
        if is_plain(char) && !(at == 0 && char == '.') {
            name.push(char);
        } else {
            for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                push_display(name, format_args!("%{byte:02X}"));
            }
        }
    }
}

/// Whether a character of a value is harmless in a file name, in a glob and in a shell. Of the scripts beyond ASCII
/// letters and digits pass; invisible characters and those that turn the direction of writing are neither.
fn is_plain(char: char) -> bool {
    char.is_alphanumeric() || matches!(char, '-' | '_' | '.')
}

/// Appends what `value` shows itself as.
pub(super) fn push_display(name: &mut String, value: impl std::fmt::Display) {
    // Writing into a string fails only when the value itself refuses, which numbers and checked formats do not.
    let written = write!(name, "{value}");
    debug_assert!(written.is_ok());
}
