//! Text that is shown to people: what a terminal would act on, or what looks like something else, is written as an escape.
//!
//! Control characters move the cursor or end the line; format characters (Unicode's Cf, with the controls of writing
//! direction among them) let text look like another one. Both can come in a record, a name or a configuration.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

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

/// Valid JSON with hidden characters as its own escapes: `\u202e`. It says the same.
pub fn shown_json(json: &str) -> Cow<'_, str> {
    if !json.contains(|c| is_hidden(c) && c != '\n') {
        return json.into();
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match c {
            // Strings have none of these: they stand between tokens.
            '\t' | '\r' => out.push(' '),
            c if is_hidden(c) && c != '\n' => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.into()
}

/// Writes lines of JSON to a terminal, each when it has ended and none before.
#[derive(Debug)]
pub struct JsonLines<W> {
    inner: W,
    line: Vec<u8>,
}

impl<W: Write> JsonLines<W> {
    /// One that writes there.
    pub fn new(inner: W) -> Self {
        Self { inner, line: Vec::new() }
    }
}

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if let Some(end) = memchr::memrchr(b'\n', &self.line) {
            let lines: Vec<u8> = self.line.drain(..=end).collect();
            self.inner.write_all(shown_json(&String::from_utf8_lossy(&lines)).as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
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

    #[test]
    fn json_says_the_same_when_it_is_shown() {
        let json = "{\"a\":\t\"\u{202e}x\u{7f}\u{e0041}\\u0007 汉\",\r\"b\u{feff}\": [1]}\n";
        let shown = shown_json(json);
        assert_eq!(shown, "{\"a\": \"\\u202ex\\u007f\\udb40\\udc41\\u0007 汉\", \"b\\ufeff\": [1]}\n");
        let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(parsed(&shown), parsed(json));
        assert!(matches!(shown_json("{\"a\":\"é\"}\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn lines_of_json_are_written_when_they_have_ended() {
        let mut lines = JsonLines::new(Vec::new());
        let text = "[\"\u{202e}\"]\n[\"é\"]\n[".as_bytes();
        // In the middle of a character.
        lines.write_all(&text[..3]).unwrap();
        assert!(lines.inner.is_empty());
        lines.write_all(&text[3..]).unwrap();
        assert_eq!(lines.inner, "[\"\\u202e\"]\n[\"é\"]\n".as_bytes());
    }
}
