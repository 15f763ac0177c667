//! Text that is shown to people: what a terminal would act on, or what looks like something else, is written as an escape.
//!
//! Control characters move the cursor or end the line; format characters (Unicode's Cf, with the controls of writing
//! direction among them) let text look like another one. Both can come in a record, a name or a configuration.

use std::borrow::Cow;

/// Whether a terminal acts on the character instead of showing it, or shows nothing of it: controls, format characters, and
/// the separators of lines and paragraphs.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

/// Whether it shows as a blank and is none that anybody types on purpose into a name, a path or a key.
pub fn looks_blank(c: char) -> bool {
    c.is_whitespace() && c != ' ' && !c.is_control()
}

/// The text with hidden characters as escapes: `\r`, `\u{202e}`.
pub fn shown(text: &str) -> Cow<'_, str> {
    escaped(text, is_hidden)
}

/// The same with look-alikes of the blank, for text that should have none.
pub fn shown_exactly(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_hidden(c) || looks_blank(c))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_escaped_and_everything_else_stays() {
        for (text, expected) in [
            ("plain 汉字　 é", "plain 汉字　 é"),
            ("a\r\nb\tc\u{1b}[2J\u{7f}\u{85}", r"a\r\nb\tc\u{1b}[2J\u{7f}\u{85}"),
            ("\u{202e}gpj.exe\u{2066}", r"\u{202e}gpj.exe\u{2066}"),
            ("\u{feff}x\u{200b}\u{ad}\u{2028}\u{e0041}", r"\u{feff}x\u{200b}\u{ad}\u{2028}\u{e0041}"),
        ] {
            assert_eq!(shown(text), expected);
        }
        assert_eq!(shown_exactly("a\u{a0}b\u{3000}c d"), r"a\u{a0}b\u{3000}c d");
    }
}
