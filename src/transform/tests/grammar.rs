//! The grammar, with `serde_json` as its oracle.

use proptest::prelude::*;
use serde_json::value::RawValue;

use crate::transform::scan::{Cursor, Fault, Kind, MAX_DEPTH, compact};

fn fault<T>(at: usize, what: &'static str) -> Result<T, Fault> {
    Err(Fault { at, what })
}

fn object(text: &str) -> Result<(), Fault> {
    let mut cursor = Cursor::new(text, 0);
    let kind = cursor.value(0)?.kind;
    cursor.end()?;
    if kind == Kind::Object { Ok(()) } else { fault(0, "not an object") }
}

fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// What `serde_json` says when it reads a raw value: the grammar, without a bound on the depth.
fn oracle(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok_and(|raw| raw.get().starts_with('{'))
        && depth(text) <= MAX_DEPTH as usize
}

#[test]
fn the_grammar_is_that_of_serde_json_on_awkward_texts() {
    let values = [
        "0",
        "-0",
        "-",
        "01",
        "-01",
        "1.",
        ".5",
        "1.5",
        "1e",
        "1e+",
        "1e400",
        "1E-5",
        "1.10",
        "+1",
        "1e5.5",
        "0x1",
        "123456789012345",
        "1234567890123456",
        "12345678901234567",
        "12345678901234.5",
        "123456789012345e6",
        "NaN",
        "true",
        "tru",
        "truex",
        "false",
        "null",
        "nul",
        "\"\"",
        "\"",
        "\"a",
        "\"\\\"",
        "\"\\\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\ud800\"",
        "\"\\u0000\"",
        "\"\u{0}\"",
        "\"\u{1f}\"",
        "\"\u{7f}\"",
        "\"tab\tin\"",
        "\"汉字\"",
        "\"exactly16bytes..\"",
        "\"exactly15bytes.\"",
        "\"a string of more than thirty-two bytes, to be sure\"",
        "[]",
        "[ ]",
        "[,]",
        "[1,]",
        "[1 2]",
        "[1,2",
        "[[],[{}]]",
        "]",
        "}",
        "{}",
        "{ }",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1 \"b\":2}",
        "{a:1}",
        "{\"a\":1}}",
        "[}",
        "{]",
        "[{\"a\":[1}]",
        "汉",
        "",
    ];
    for value in values {
        for text in
            [format!("{{\"k\":{value}}}"), format!(" {{ \"k\" : {value} , \"l\":[ {value} ] }} "), value.to_owned()]
        {
            assert_eq!(object(&text).is_ok(), oracle(&text), "{text:?}: {:?}", object(&text));
        }
    }
}

#[test]
fn nesting_of_128_passes_and_of_129_does_not() {
    for (levels, passes) in [(127, true), (128, true), (129, false), (100_000, false)] {
        let arrays = format!("{{\"a\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
        let objects = format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert_eq!(object(&arrays).is_ok(), passes, "{levels} arrays");
        assert_eq!(object(&objects).is_ok(), passes, "{levels} objects");
    }
}

#[test]
fn a_fault_names_its_byte() {
    assert_eq!(object("{\"a\":tru}"), fault(5, "expected a value"));
    assert_eq!(object("{\"a\":1"), fault(6, "expected `,` or `}`"));
    assert_eq!(object("{\"a\":\"x"), fault(7, "unterminated string"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn json_like_text_is_taken_exactly_when_serde_json_takes_it(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"a\"", "\"", "\\", "\\u00", "1", "-", "0", ".5", "e1", "true", "null", " ", "\n", "\u{1}", "é", "{}", "[]",
            "\"a\":", "\"a\":1", "\"a long enough string\"",
        ]), 0..14)
    ) {
        let text = format!("{{{}}}", pieces.concat());
        prop_assert_eq!(object(&text).is_ok(), oracle(&text), "{:?}", text);
        let text = pieces.concat();
        prop_assert_eq!(object(&text).is_ok(), oracle(&text), "{:?}", text);
    }

    #[test]
    fn a_damaged_document_is_taken_exactly_when_serde_json_takes_it(at in 0_usize..400, with: u8) {
        let mut bytes = br#"{"a":[1,-2.50e+3,{"b":"x\u00e9\n"},[],{}],"c":{"d":null,"e":true},"f":"sixteen bytes and more"}"#.to_vec();
        let at = at % bytes.len();
        bytes[at] = with % 128;
        let text = String::from_utf8(bytes).unwrap();
        prop_assert_eq!(object(&text).is_ok(), oracle(&text), "{:?}", text);
    }

    #[test]
    fn compacting_takes_only_white_space_between_tokens(text in "[ \t\n]{0,3}(\"[a \\\\\"]{0,5}|[ 0-9,:]){0,9}") {
        let text = format!("{{ \"k\" :\t{} , \"l\": \" a \" }}", serde_json::to_string(&text).unwrap());
        let mut out = Vec::new();
        compact(&text, &mut out);
        let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        prop_assert_eq!(parse(&out), parse(text.as_bytes()));
        prop_assert_eq!(serde_json::to_vec(&parse(&out)).unwrap(), out);
    }
}
