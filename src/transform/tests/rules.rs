//! The rules one by one.

use super::*;
use crate::record::Filter;
use crate::settings::Pattern;

fn standard() -> Transform {
    Transform::new(&Settings::default(), options())
}

fn logs(logs: &str) -> Vec<u8> {
    format!(r#"{{"headers":{{"app_id":24,"log_name":"log_item"}},"logs":{logs}}}"#).into_bytes()
}

fn timed(value: &[u8]) -> Record<'_> {
    Record { timestamp: Some(1), ..record(value) }
}

const GOOD: &str = r#"{"role_id":1,"mtime":1608184243}"#;

#[test]
fn a_tombstone_is_filtered_and_an_empty_value_is_bad_json() {
    let tombstone = Record { value: None, ..record(b"") };
    let result = standard().apply(&mut Scratch::default(), &tombstone, &mut Vec::new());
    assert_eq!(result, Err(Discard::Filtered(Filter::Tombstone)));
    assert_eq!(reason(apply(&standard(), b"")), Reason::BadJson);
}

#[test]
fn a_byte_order_mark_before_the_json_is_none_of_it_and_version_1_took_none() {
    let plain = logs(GOOD);
    let marked = [b"\xef\xbb\xbf", &plain[..]].concat();
    let (transform, mut scratch) = (standard(), Scratch::default());
    let mut line = |transform: &Transform, value: &[u8]| {
        let mut out = Vec::new();
        transform.apply(&mut scratch, &timed(value), &mut out).map(|()| out)
    };
    let expected = line(&transform, &plain).unwrap();
    // Before and behind records without one, with what is kept of those.
    for value in [&marked, &plain, &marked, &marked, &plain] {
        assert_eq!(line(&transform, value), Ok(expected.clone()));
    }
    let (options, settings) = (options(), Settings::default());
    assert_eq!(oracle::transform(&settings, &options, &timed(&marked)).unwrap().into_bytes(), expected);
    assert_eq!(
        reason(line(&transform, &[b"\xef\xbb\xbf", &marked[..]].concat()).map(|_| String::new())),
        Reason::BadJson
    );
    assert_eq!(reason(line(&standard().of_version_1(), &marked).map(|_| String::new())), Reason::BadJson);
}

#[test]
fn the_first_check_that_fails_is_the_reason() {
    // Each line mends the fault of the one before and keeps all later ones.
    let steps: [(&str, Reason); 8] = [
        ("{\"logs\":5", Reason::BadJson),
        ("{\"logs\":5}", Reason::NoHeaders),
        (r#"{"headers":{"log_name":""},"logs":5}"#, Reason::NoLogName),
        (r#"{"headers":{"log_name":"bad-name"},"logs":5}"#, Reason::NoLogs),
        (r#"{"headers":{"log_name":"bad-name"},"logs":{"mtime":"x"}}"#, Reason::NoTime),
        (r#"{"headers":{"log_name":"bad-name"},"logs":{"mtime":1}}"#, Reason::BadEventName),
        (r#"{"headers":{"log_name":"name"},"logs":{"mtime":1}}"#, Reason::NoId),
        (r#"{"headers":{"log_name":"name"},"logs":{"mtime":1,"role_id":"LONG"}}"#, Reason::BadId),
    ];
    for (json, expected) in steps {
        assert_eq!(reason(apply(&standard(), json.replace("LONG", &"x".repeat(129)).as_bytes())), expected, "{json}");
    }
    let wrong_type = Transform::new(
        &settings(vec![mapping("*", "e", "wrong", &[("#account_id", "role_id", "")])]),
        Options { validation: Validation::Strict, ..options() },
    );
    let value = logs(r#"{"role_id":1,"a":null}"#);
    let mut out = Vec::new();
    let result = wrong_type.apply(&mut Scratch::default(), &timed(&value), &mut out);
    assert!(matches!(result, Err(Discard::Rejected(reject)) if reject.reason == Reason::BadType));
}

#[test]
fn the_app_is_ours_by_number_by_text_and_when_absent() {
    for (app, ours) in [
        ("24", true),
        ("\"24\"", true),
        ("\"2\\u0034\"", true),
        ("null", true),
        ("25", false),
        ("24.0", false),
        ("\" 24\"", false),
        ("true", false),
        ("[24]", false),
    ] {
        let value = format!(r#"{{"headers":{{"app_id":{app},"log_name":"log_item"}},"logs":{GOOD}}}"#);
        let result = apply(&standard(), value.as_bytes());
        assert_eq!(result.is_ok(), ours, "{app}");
        assert!(ours || result == Err(Discard::Filtered(Filter::OtherApp)), "{app}");
    }
}

#[test]
fn drop_wins_over_keep_and_both_see_the_decoded_name() {
    let mut settings = Settings::default();
    settings.filter.drop = vec![Pattern::new("log_a*")];
    settings.filter.keep = Some(vec![Pattern::new("log_*")]);
    let transform = Transform::new(&settings, options());
    for (name, passes) in
        [("log_b", true), ("log_abc", false), (r"log_\u0061", false), ("other", false), (r"\u006cog_b", true)]
    {
        let value = format!(r#"{{"headers":{{"log_name":"{name}"}},"logs":{GOOD}}}"#);
        let result = apply(&transform, value.as_bytes());
        assert!(
            if passes { result.is_ok() } else { result == Err(Discard::Filtered(Filter::Drop)) },
            "{name}: {result:?}"
        );
    }
}

#[test]
fn a_record_that_is_filtered_must_be_valid_json_too() {
    let mut settings = Settings::default();
    settings.filter.drop = vec![Pattern::new("*")];
    let transform = Transform::new(&settings, options());
    assert_eq!(reason(apply(&transform, &logs(r#"{"a":01}"#))), Reason::BadJson);
    assert_eq!(reason(apply(&standard(), br#"{"headers":{"app_id":25,"log_name":"x"},"logs":{}} x"#)), Reason::BadJson);
}

#[test]
fn depth_128_passes_and_129_is_bad_json() {
    // The record and `logs` are two levels.
    let nested = |levels: usize| {
        logs(&format!(r#"{{"role_id":1,"mtime":1,"deep":{}{}}}"#, "[".repeat(levels), "]".repeat(levels)))
    };
    assert!(apply(&standard(), &nested(126)).is_ok());
    assert_eq!(reason(apply(&standard(), &nested(127))), Reason::BadJson);
    assert_eq!(reason(apply(&standard(), &nested(1_000_000))), Reason::BadJson);
}

#[test]
fn bytes_that_are_not_utf_8_are_bad_json_and_the_place_is_told() {
    let mut value = logs(r#"{"role_id":"x"}"#);
    let at = value.iter().position(|&byte| byte == b'x').unwrap();
    value[at] = 0xff;
    let Err(Discard::Rejected(reject)) = apply(&standard(), &value) else { panic!("expected a reject") };
    assert_eq!((reject.reason, &*reject.detail), (Reason::BadJson, &*format!("not UTF-8 at byte {at}")));
}

#[test]
fn a_member_that_follows_a_shape_needs_its_comma_all_the_same() {
    let transform = standard();
    let mut scratch = Scratch::default();
    let mut out = Vec::new();
    for value in [logs(r#"{"a":1,"role_id":1,"mtime":1}"#), logs(r#"{"role_id":1,"mtime":1}"#)] {
        transform.apply(&mut scratch, &record(&value), &mut out).unwrap();
    }
    for broken in [
        r#"{"x":1{"a":1,"role_id":1,"mtime":1}"#,
        r#",{"a":1}"#,
        r#"{"a":1"role_id":1}"#,
        r#"{,"role_id":1,"mtime":1}"#,
    ] {
        let result = transform.apply(&mut scratch, &record(&logs(broken)), &mut out);
        assert!(matches!(result, Err(Discard::Rejected(reject)) if reject.reason == Reason::BadJson), "{broken}");
    }
}

#[test]
fn the_scratch_names_the_last_line_and_user_events_share_a_name() {
    let settings = settings(vec![mapping("log_user", "ignored", "user_set", &[("#account_id", "role_id", "")])]);
    let transform = Transform::new(&settings, options());
    let mut scratch = Scratch::default();
    let mut out = Vec::new();
    let value = |name: &str| format!(r#"{{"headers":{{"log_name":"{name}"}},"logs":{GOOD}}}"#).into_bytes();
    let names = |scratch: &Scratch| (scratch.log_name().to_owned(), scratch.event_name().to_owned());
    let [first, bad, user] = [r"log_\u0061", "bad-name", "log_user"].map(value);
    transform.apply(&mut scratch, &timed(&first), &mut out).unwrap();
    assert_eq!(names(&scratch), ("log_a".to_owned(), "t_log_a".to_owned()));
    transform.apply(&mut scratch, &timed(&bad), &mut out).unwrap_err();
    assert_eq!(names(&scratch), ("log_a".to_owned(), "t_log_a".to_owned()), "a discard changes nothing");
    transform.apply(&mut scratch, &timed(&user), &mut out).unwrap();
    assert_eq!(names(&scratch), ("log_user".to_owned(), "user".to_owned()));
}

#[test]
fn a_scratch_that_served_other_settings_forgets_them() {
    let mut scratch = Scratch::default();
    for (event, zone) in [("first", "Asia/Shanghai"), ("second", "Europe/Berlin")] {
        let settings =
            settings(vec![mapping("*", event, "track", &[("#account_id", "role_id", ""), ("#time", "mtime", "")])]);
        let options = Options { time_zone: TimeZone::built_in(zone).unwrap(), ..options() };
        let transform = Transform::new(&settings, options);
        let (mut warm, mut cold) = (Vec::new(), Vec::new());
        transform.apply(&mut scratch, &record(&logs(GOOD)), &mut warm).unwrap();
        transform.apply(&mut Scratch::default(), &record(&logs(GOOD)), &mut cold).unwrap();
        assert_eq!(warm, cold);
        assert_eq!(scratch.event_name(), event);
    }
}

#[test]
fn more_log_names_than_the_table_holds_give_the_same_lines() {
    let transform = standard();
    let mut scratch = Scratch::default();
    for i in (0..3000).chain(0..3000) {
        let name = if i % 100 == 0 { format!("n{i}_{}", "x".repeat(300)) } else { format!("n{i}") };
        let value = format!(r#"{{"headers":{{"log_name":"{name}"}},"logs":{{"role_id":{i},"mtime":1}}}}"#);
        let mut out = Vec::new();
        let result = transform.apply(&mut scratch, &record(value.as_bytes()), &mut out);
        if i % 100 == 0 {
            assert!(matches!(result, Err(Discard::Rejected(reject)) if reject.reason == Reason::BadEventName));
        } else {
            let line = String::from_utf8(out).unwrap();
            assert!(
                line.contains(&format!("\"#account_id\":\"{i}\"")) && line.contains(&format!("\"t_n{i}\"")),
                "{line}"
            );
        }
    }
}
