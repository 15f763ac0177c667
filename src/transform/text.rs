//! The text of JSON strings: from escapes to characters and back.

use std::borrow::Cow;

use super::scan::{Kind, Value};

/// The characters of a number or string of the record `json`.
pub(super) fn decoded(json: &str, value: Value) -> Cow<'_, str> {
    let raw = value.of(json);
    if value.kind == Kind::Escaped {
        let mut out = String::with_capacity(raw.len());
        decode(raw, &mut out);
        Cow::Owned(out)
    } else {
        Cow::Borrowed(raw)
    }
}

/// Appends the characters of `raw`, the valid text between a string's quotes. Half of a surrogate pair without the other
/// becomes U+FFFD: no character can stand for it.
pub(super) fn decode(raw: &str, out: &mut String) {
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        let escape = rest.as_bytes().get(at + 1).copied().unwrap_or(b'\\');
        rest = rest.get(at + 2..).unwrap_or_default();
        out.push(match escape {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let (character, after) = decode_unit(rest);
                rest = after;
                character
            }
            other => char::from(other),
        });
    }
    out.push_str(rest);
}

/// Reads the four digits behind `\u`, and the second half of a pair when there is one.
fn decode_unit(rest: &str) -> (char, &str) {
    let unit = |digits: &str| digits.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let Some(first) = unit(rest) else { return (char::REPLACEMENT_CHARACTER, rest) };
    let after = &rest[4..];
    if (0xd800..0xdc00).contains(&first)
        && let Some(second) = after.strip_prefix("\\u").and_then(unit)
        && (0xdc00..0xe000).contains(&second)
    {
        let joined = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return (char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER), &after[6..]);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), after)
}

/// Appends `text` as it stands between the quotes of a JSON string: only what must be escaped is.
pub(super) fn escape(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for &byte in text.as_bytes() {
        let short = match byte {
            b'"' | b'\\' => byte,
            0x8 => b'b',
            0xc => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..0x20 => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                continue;
            }
            _ => {
                out.push(byte);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', short]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_one(raw: &str) -> String {
        let mut out = String::new();
        decode(raw, &mut out);
        out
    }

    #[test]
    fn every_escape_is_decoded() {
        assert_eq!(decode_one(r#"a\"\\\/\b\f\n\r\t\u0041\u4e2dz"#), "a\"\\/\u{8}\u{c}\n\r\tA中z");
        assert_eq!(decode_one(r"\ud83d\ude00\u0000"), "😀\0");
    }

    #[test]
    fn half_a_surrogate_pair_becomes_the_replacement_character() {
        assert_eq!(decode_one(r"\ud800"), "\u{fffd}");
        assert_eq!(decode_one(r"\udc00x"), "\u{fffd}x");
        assert_eq!(decode_one(r"\ud800\ud83d\ude00"), "\u{fffd}😀");
        assert_eq!(decode_one(r"\ud800\n"), "\u{fffd}\n");
        assert_eq!(decode_one(r"\ud800A"), "\u{fffd}A");
    }

    proptest! {
        #[test]
        fn escaping_is_that_of_serde_json_and_decoding_undoes_it(text: String) {
            let mut out = vec![b'"'];
            escape(&text, &mut out);
            out.push(b'"');
            prop_assert_eq!(&out, &serde_json::to_vec(&text).unwrap());
            prop_assert_eq!(decode_one(std::str::from_utf8(&out[1..out.len() - 1]).unwrap()), text);
        }

        #[test]
        fn decoding_never_panics_on_foreign_text(text in r"(\\|u|d8|dc|00|é|n|[0-9a-f]){0,12}") {
            decode_one(&text);
        }
    }
}
