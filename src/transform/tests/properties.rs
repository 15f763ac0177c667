//! Properties that hold for every record, the first of them: the line is the one that the oracle gives.

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::oracle;
use super::{mapping, options};
use crate::config::{TimeZone, Validation};
use crate::record::{Discard, Reject};
use crate::settings::{Filter, Pattern, Settings};
use crate::transform::{Options, Record, Scratch, Transform};

/// One of the texts, which are near each other so that they meet.
fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    prop::sample::select(texts).prop_map(str::to_owned)
}

fn white() -> impl Strategy<Value = String> + Clone {
    prop_oneof![12 => Just(String::new()), 1 => one_of(&[" ", "\n", "\t\r ", "  "])]
}

fn scalar() -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        4 => one_of(&[
            "1608184243", "1608184243007", "0", "-1", "-0", "1.10", "1e400", "1E+2", "6001310009300", "12345678901234567890", "99999999999999999",
            "123456789012345", "1234567890123456", "9000000000000001",
        ]),
        4 => one_of(&[
            r#""""#, r#""a""#, r#""2020-12-17 13:50:43""#, r#""2020-12-17T05:50:43Z""#, r#""1608184243""#, r#""role""#, r#""with \"escapes\" \\ \/""#,
            r#""\u0041\u4e2d""#, r#""\ud800""#, r#""\ud83d\ude00""#, r#""\u0000""#, r#""汉字""#, r#""track""#, r#""user_set""#, r#""exactly15bytes.""#,
            r#""exactly16bytes..""#, r#""text that is longer than thirty-two bytes, surely""#,
        ]),
        1 => one_of(&["null", "true", "false", "[]", "{}", r#"[1,{"a":[null]},"x"]"#, r#"{ "b" : [ 1 , 2 ] }"#]),
        1 => "[a-z]{1,40}".prop_map(|text| format!("\"{text}\"")),
        1 => (100_usize..140).prop_map(|count| format!("\"{}\"", "汉".repeat(count))),
    ]
}

fn object(keys: &'static [&'static str], most: usize) -> impl Strategy<Value = String> + Clone {
    let member = (white(), one_of(keys), white(), scalar(), white());
    (prop::collection::vec(member, 0..most), white()).prop_map(|(members, white)| {
        let members: Vec<_> =
            members.iter().map(|(a, key, b, value, c)| format!("{a}\"{key}\"{b}:{b}{value}{c}")).collect();
        format!("{{{white}{}}}", members.join(","))
    })
}

fn logs() -> impl Strategy<Value = String> + Clone {
    object(
        &[
            "role_id",
            "distinct_id",
            "ip",
            "mtime",
            "account_name",
            "log_name",
            "app_id",
            "imei",
            "ime\\u0069",
            "r\\u006fle_id",
            "level",
            "#os",
            "bad name",
            "a_member_with_a_name_longer_than_32_bytes",
            "twenty_eight_bytes_long_name",
            "name_of_exactly_29_bytes_long",
            "kind",
            "汉",
        ],
        12,
    )
}

fn headers() -> impl Strategy<Value = String> + Clone {
    let name = one_of(&["log_item", "log_chat", "log_\\u0069tem", "tbl_x", "other", "bad-name", ""]);
    let app = one_of(&["24", "\"24\"", "25", "\"2\\u0034\"", "null", "24.0", "true"]);
    prop_oneof![
        8 => (name.clone(), white()).prop_map(|(name, white)| format!(r#"{{"app_id":24,{white}"log_name":"{name}"}}"#)),
        2 => (name.clone(), app).prop_map(|(name, app)| format!(r#"{{"log_name":"{name}","app_id":{app}}}"#)),
        1 => name.prop_map(|name| format!(r#"{{"log_name":"first","log_name":"{name}","other":[1]}}"#)),
        1 => one_of(&["{}", "null", "[]", "1", r#"{"log_name":null}"#, r#"{"log_name":5}"#, r#"{"app_id":24}"#]),
    ]
}

fn value() -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        8 => (headers(), logs()).prop_map(|(headers, logs)| format!(r#"{{"headers":{headers},"logs":{logs}}}"#)),
        2 => (headers(), white(), logs()).prop_map(|(headers, w, logs)| format!(r#"{w}{{{w}"logs"{w}:{w}{logs}{w},"headers":{w}{headers}{w}}}{w}"#)),
        1 => (headers(), logs(), logs()).prop_map(|(headers, a, b)| format!(r#"{{"headers":{headers},"logs":{a},"x":1,"lo\u0067s":{b}}}"#)),
        1 => (headers(), headers(), logs()).prop_map(|(a, b, logs)| format!(r#"{{"headers":{a},"logs":{logs},"headers":{b}}}"#)),
        1 => (headers(), scalar()).prop_map(|(headers, logs)| format!(r#"{{"headers":{headers},"logs":{logs}}}"#)),
        1 => headers().prop_map(|headers| format!(r#"{{"headers":{headers}}}"#)),
    ]
}

/// A value near others in length and kind, or no value at all.
fn near() -> impl Strategy<Value = String> + Clone {
    prop_oneof![
        6 => one_of(&["1", "12", "10", "1608184243", "1608184244", "\"a\"", "\"b\"", "\"ab\"", "\"\""]),
        2 => one_of(&[
            "0", "01", "-1", "1.5", "1e5", "1e", "1 ", "\"\\\"\"", "\"\\u0041\"", "\"a", "\"a\"b\"", "a\"", "\"a\\\"", "\"\t\"", "null", "{}", "[1]", "",
        ]),
        2 => one_of(&[
            "[1,{\"a\":-1.5}]", "[2,{\"b\":-0.7}]", "[2,{\"b\":-00.7}]", "[2,{\"\\\"\":-0.7}]", "[0,{\"}\":-9.9}]", "[0,{\"}\":-9.9]]",
            "[1, {\"a\":-1.5}]", "[true]", "[null]", "-12", "-01", "-1e-07", "-1e+00", "\"é\"", "\"]}\"", "\"\u{7f} \"",
        ]),
        1 => (14_usize..34).prop_map(|len| "1234567890".repeat(4)[..len].to_owned()),
        1 => prop_oneof![12_usize..34, 250_usize..260].prop_map(|len| format!("\"{}\"", "x".repeat(len))),
    ]
}

/// Records with the same members in the same order, and now and then one that is cut short.
fn alike() -> impl Strategy<Value = Vec<String>> {
    let keys = one_of(&[
        "role_id",
        "mtime",
        "ip",
        "level",
        "kind",
        "distinct_id",
        "imei",
        "x",
        "twenty_seven_bytes_long_key",
        "account_name",
        r"mtim\u0065",
        "ключ",
    ]);
    let tail = one_of(&["}}", "}}", "}}", "}} ", "}", ",\"y\":1}}", "}},"]);
    (prop::collection::vec(keys, 1..8), one_of(&["log_item", "log_chat"])).prop_flat_map(move |(keys, name)| {
        let members = keys.into_iter().map(|key| near().prop_map(move |value| format!("\"{key}\":{value}")));
        let record = (members.collect::<Vec<_>>(), tail.clone()).prop_map(move |(members, tail)| {
            format!(r#"{{"headers":{{"app_id":24,"log_name":"{name}"}},"logs":{{{}{tail}"#, members.join(","))
        });
        prop::collection::vec(record, 2..14)
    })
}

fn rules() -> impl Strategy<Value = Settings> {
    let metadata = prop::sample::select(vec![
        vec![],
        vec![mapping(
            "log_item",
            "t_{log_name}",
            "track",
            &[("#account_id", "role_id", "{account_name}"), ("#time", "mtime", "")],
        )],
        vec![
            mapping(
                "*",
                "{level}{log_name}",
                "track",
                &[("#distinct_id", "", "{app_id}-{role_id}"), ("#time", "", "{mtime}"), ("#zz", "level", "")],
            ),
            mapping(
                "log_chat",
                "chat",
                "user_set",
                &[("#account_id", "role_id", "nobody"), ("#aa", "kind", "\"{imei}\"")],
            ),
        ],
        vec![mapping(
            "*",
            "x",
            "wrong",
            &[
                ("#type", "kind", ""),
                ("#event_name", "level", ""),
                ("#uuid", "ip", ""),
                ("#account_id", "log_name", "z"),
            ],
        )],
    ]);
    let filter = prop::sample::select(vec![
        Filter::default(),
        Filter {
            drop: vec![Pattern::new("tbl_*")],
            omit: vec![(Pattern::new("*"), vec!["imei".into()])],
            ..Filter::default()
        },
        Filter {
            drop: vec![Pattern::new("log_chat")],
            keep: Some(vec![Pattern::new("log_*")]),
            omit: vec![(
                Pattern::new("log_item"),
                vec!["role_id".into(), "a_member_with_a_name_longer_than_32_bytes".into()],
            )],
        },
    ]);
    (metadata, filter).prop_map(|(metadata, filter)| Settings { filter, metadata })
}

fn any_options() -> impl Strategy<Value = Options> {
    let validation = prop::sample::select(vec![Validation::Off, Validation::Standard, Validation::Strict]);
    let zone = prop::sample::select(vec![options().time_zone, TimeZone::built_in("Europe/Berlin").unwrap()]);
    (validation, any::<bool>(), zone).prop_map(|(validation, uuid, time_zone)| Options {
        app_id: 24,
        validation,
        uuid,
        time_zone,
    })
}

/// The result with a reject's detail left out, which the oracle does not have.
fn plain(result: Result<String, Discard>) -> Result<String, Discard> {
    result.map_err(|discard| match discard {
        Discard::Rejected(reject) => Reject::new(reject.reason, "").into(),
        filtered @ Discard::Filtered(_) => filtered,
    })
}

fn apply(transform: &Transform, scratch: &mut Scratch, record: &Record<'_>) -> Result<String, Discard> {
    let mut out = b"x\n".to_vec();
    let result = transform.apply(scratch, record, &mut out);
    let line = String::from_utf8(out.split_off(2)).unwrap();
    assert_eq!(out, b"x\n");
    assert_eq!(line.is_empty(), result.is_err());
    result.map(|()| line)
}

fn at(value: &[u8], timestamp: Option<i64>) -> Record<'_> {
    Record { topic: "mulog", topic_id: "id", partition: 3, offset: 77, timestamp, value: Some(value) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn records_like_those_before_give_what_the_oracle_gives(
        settings in rules(), options in any_options(), values in alike(),
        timestamp in prop::sample::select(vec![None, Some(1_608_184_243_123)]),
    ) {
        let transform = Transform::new(&settings, options.clone());
        let mut scratch = Scratch::default();
        for value in &values {
            let record = at(value.as_bytes(), timestamp);
            let got = plain(apply(&transform, &mut scratch, &record));
            prop_assert_eq!(got, oracle::transform(&settings, &options, &record), "{}", value);
        }
    }

    #[test]
    fn a_sequence_of_records_gives_what_the_oracle_gives(
        settings in rules(), options in any_options(), values in prop::collection::vec(value(), 1..8),
        timestamp in prop::sample::select(vec![None, Some(1_608_184_243_123), Some(-1)]),
    ) {
        let transform = Transform::new(&settings, options.clone());
        let mut scratch = Scratch::default();
        // The second round meets the shapes that the first one learned.
        for value in values.iter().chain(&values) {
            let record = at(value.as_bytes(), timestamp);
            let got = plain(apply(&transform, &mut scratch, &record));
            prop_assert_eq!(&got, &oracle::transform(&settings, &options, &record), "{}", value);
            if let Ok(line) = got {
                prop_assert_eq!(line.matches('\n').count(), 1);
                prop_assert!(serde_json::from_str::<&RawValue>(&line).is_ok());
            }
        }
    }

    #[test]
    fn a_damaged_record_gives_what_the_oracle_gives(
        value in value(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..4),
    ) {
        let (settings, options) = (Settings::default(), options());
        let transform = Transform::new(&settings, options.clone());
        let mut scratch = Scratch::default();
        // Warm: the undamaged record has left its shape and its frame.
        apply(&transform, &mut scratch, &at(value.as_bytes(), Some(1))).ok();
        let mut bytes = value.into_bytes();
        for (index, with, how) in damage {
            let index = index.index(bytes.len().max(1));
            match how {
                _ if bytes.is_empty() => {}
                0 => bytes[index] = with,
                1 => { bytes.remove(index); }
                2 => bytes.insert(index, b"{}[],:\"\\ 0-"[usize::from(with) % 11]),
                _ => bytes.truncate(index),
            }
        }
        let record = at(&bytes, Some(1_608_184_243_123));
        prop_assert_eq!(plain(apply(&transform, &mut scratch, &record)), oracle::transform(&settings, &options, &record), "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_bytes_give_a_reject_and_no_panic(bytes: Vec<u8>) {
        let transform = Transform::new(&Settings::default(), options());
        let result = apply(&transform, &mut Scratch::default(), &at(&bytes, None));
        prop_assert_eq!(plain(result), oracle::transform(&Settings::default(), &options(), &at(&bytes, None)));
    }
}
