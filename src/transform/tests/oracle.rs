//! The transform once more, written for plainness on `serde_json`: what [`Transform`](super::Transform) must give.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::config::Validation;
use crate::record::{Discard, Filter, Reason, Reject};
use crate::settings::{Key, Mapping, Part, Pattern, Settings, Template};
use crate::transform::time::{Cache, Moment};
use crate::transform::{Options, Record, strict, uuid};

/// The members of an object in their order, duplicates kept: raw key, raw value.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(key) = map.next_key()? {
                    members.push((key, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

impl<'a> Members<'a> {
    fn of(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    fn last(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(key, _)| characters(key.get()) == name).map(|(_, value)| value.get())
    }
}

/// The characters of a raw JSON string. `serde_json` gives the bytes of half a surrogate pair; they become U+FFFD here.
fn characters(raw: &str) -> String {
    let bytes = serde_json::from_str::<serde_bytes::ByteBuf>(raw).unwrap().into_vec();
    let mut text = String::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match std::str::from_utf8(rest) {
            Ok(good) => {
                text.push_str(good);
                break;
            }
            Err(error) => {
                text.push_str(std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap());
                text.push('\u{fffd}');
                rest = &rest[error.valid_up_to() + 3..];
            }
        }
    }
    text
}

/// A value that can be a `#` value: its text as it stands in JSON between quotes, and its characters.
#[derive(Clone)]
struct Text {
    json: String,
    characters: String,
}

impl Text {
    fn of_value(raw: &str) -> Option<Self> {
        match raw.as_bytes()[0] {
            b'"' => Some(Self { json: raw[1..raw.len() - 1].to_owned(), characters: characters(raw) }),
            b'-' | b'0'..=b'9' => Some(Self { json: raw.to_owned(), characters: raw.to_owned() }),
            _ => None,
        }
    }

    fn of_characters(characters: String) -> Self {
        let json = serde_json::to_string(&characters).unwrap();
        Self { json: json[1..json.len() - 1].to_owned(), characters }
    }
}

/// How deep the containers of a valid text are nested.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !quoted => depth -= 1,
            _ => {}
        }
    }
    deepest
}

fn without_white_space(json: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let keep = |character: &char| {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        quoted || !" \t\r\n".contains(*character)
    };
    json.chars().filter(keep).collect()
}

fn reject<T>(reason: Reason) -> Result<T, Discard> {
    Err(Reject::new(reason, "").into())
}

struct Context<'a> {
    logs: Members<'a>,
    log_name: String,
    app_id: String,
}

impl Context<'_> {
    fn template(&self, template: &Template) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Member(name) => match (self.logs.last(name).and_then(Text::of_value), name.as_str()) {
                (Some(text), _) => text.characters,
                (None, "log_name") => self.log_name.clone(),
                (None, "app_id") => self.app_id.clone(),
                (None, _) => String::new(),
            },
        };
        template.0.iter().map(part).collect()
    }

    /// Field, default and what comes behind them, in turn.
    fn candidates(&self, mapping: &Mapping, name: &str, last: Option<&Template>) -> Vec<Text> {
        let key = mapping.keys.iter().find(|key| key.name == name);
        let field =
            key.and_then(|key| key.field.as_ref()).and_then(|field| self.logs.last(field)).and_then(Text::of_value);
        let templates = key.map(|key| &key.default).into_iter().chain(last);
        let templates = templates.map(|template| Text::of_characters(self.template(template)));
        field.into_iter().chain(templates).filter(|text| !text.json.is_empty()).collect()
    }

    fn value(&self, mapping: &Mapping, name: &str, last: Option<&Template>) -> Text {
        let first = self.candidates(mapping, name, last).into_iter().next();
        first.unwrap_or_else(|| Text::of_characters(String::new()))
    }
}

fn standard_mapping() -> Mapping {
    super::mapping(
        "*",
        "t_{log_name}",
        "track",
        &[
            ("#account_id", "role_id", ""),
            ("#distinct_id", "distinct_id", ""),
            ("#ip", "ip", ""),
            ("#time", "mtime", ""),
        ],
    )
}

fn is_name(text: &str) -> bool {
    text.chars().next().is_some_and(|first| first.is_ascii_alphabetic())
        && text.chars().count() <= 50
        && text.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
}

/// The line of a record, its detail of a reject left empty.
pub(super) fn transform(settings: &Settings, options: &Options, record: &Record<'_>) -> Result<String, Discard> {
    let Some(value) = record.value else { return Err(Discard::Filtered(Filter::Tombstone)) };
    let Ok(json) = std::str::from_utf8(value) else { return reject(Reason::BadJson) };
    let json = json.strip_prefix('\u{feff}').unwrap_or(json);
    let Some(members) = Members::of(json) else { return reject(Reason::BadJson) };
    if depth(json) > 128 {
        return reject(Reason::BadJson);
    }
    let Some(headers) = members.last("headers").filter(|raw| raw.starts_with('{')).and_then(Members::of) else {
        return reject(Reason::NoHeaders);
    };
    let app_id = options.app_id.to_string();
    match headers.last("app_id") {
        None | Some("null") => {}
        Some(raw) if Text::of_value(raw).is_some_and(|text| text.characters == app_id) => {}
        Some(_) => return Err(Discard::Filtered(Filter::OtherApp)),
    }
    let log_name = headers.last("log_name").filter(|raw| raw.starts_with('"')).map(characters);
    let Some(log_name) = log_name.filter(|name| !name.is_empty()) else { return reject(Reason::NoLogName) };
    let Some(logs) = members.last("logs").filter(|raw| raw.starts_with('{')).and_then(Members::of) else {
        return reject(Reason::NoLogs);
    };
    let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(&log_name));
    if any(&settings.filter.drop) || settings.filter.keep.as_deref().is_some_and(|keep| !any(keep)) {
        return Err(Discard::Filtered(Filter::Drop));
    }
    let named = |name: &str| settings.metadata.iter().find(|mapping| mapping.log_name == name).cloned();
    let mapping = named(&log_name).or_else(|| named("*")).unwrap_or_else(standard_mapping);
    event(settings, options, record, &mapping, &Context { logs, log_name, app_id })
}

fn event(
    settings: &Settings,
    options: &Options,
    record: &Record<'_>,
    mapping: &Mapping,
    context: &Context<'_>,
) -> Result<String, Discard> {
    let write = |moment| Cache::default().write(moment, options.time_zone);
    let times =
        context.candidates(mapping, "#time", None).into_iter().filter_map(|text| Moment::read(&text.characters));
    let Some(time) = times.chain(record.timestamp.and_then(Moment::from_millis)).find_map(write) else {
        return reject(Reason::NoTime);
    };
    let event_type = context.value(mapping, "#type", Some(&Template(vec![Part::Text(mapping.event_type.clone())])));
    let event_name = context.value(mapping, "#event_name", Some(&mapping.event_name));
    let ids = ["#account_id", "#distinct_id"].map(|name| context.value(mapping, name, None));
    let user = event_type.characters.starts_with("user_");
    if options.validation != Validation::Off {
        if !user && !is_name(&event_name.characters) {
            return reject(Reason::BadEventName);
        }
        if ids.iter().all(|id| id.json.is_empty()) {
            return reject(Reason::NoId);
        }
        if ids.iter().any(|id| id.characters.chars().count() > 128) {
            return reject(Reason::BadId);
        }
        let known = "track track_update track_overwrite user_set user_setOnce user_add user_unset user_append user_uniq_append user_del";
        if !known.split(' ').any(|name| name == event_type.characters) {
            return reject(Reason::BadType);
        }
    }
    let properties = properties(settings, context);
    if options.validation == Validation::Strict && strict::check(&properties).is_err() {
        return reject(Reason::BadProperty);
    }
    let [account, distinct] = ids;
    let mut keys = vec![
        ("#account_id".to_owned(), account.json),
        ("#distinct_id".to_owned(), distinct.json),
        ("#ip".to_owned(), context.value(mapping, "#ip", None).json),
        ("#time".to_owned(), String::from_utf8(time.as_bytes().to_vec()).unwrap()),
        ("#type".to_owned(), event_type.json),
    ];
    if !user {
        keys.push(("#event_name".to_owned(), event_name.json));
    }
    let uuid_text = context.value(mapping, "#uuid", None).json;
    if !uuid_text.is_empty() {
        keys.push(("#uuid".to_owned(), uuid_text));
    } else if options.uuid {
        keys.push(("#uuid".to_owned(), String::from_utf8(uuid::of(record, &mut Vec::new()).to_vec()).unwrap()));
    }
    for Key { name, .. } in &mapping.keys {
        let text = context.value(mapping, name, None).json;
        let standard = ["#account_id", "#distinct_id", "#event_name", "#ip", "#time", "#type", "#uuid"];
        if !standard.contains(&name.as_str()) && !text.is_empty() {
            keys.push((name.clone(), text));
        }
    }
    keys.sort();
    let mut members: Vec<_> =
        keys.iter().map(|(name, text)| format!("{}:\"{text}\"", serde_json::to_string(name).unwrap())).collect();
    members.push(format!("\"properties\":{properties}"));
    Ok(format!("{{{}}}\n", members.join(",")))
}

fn properties(settings: &Settings, context: &Context<'_>) -> String {
    let omitted = |name: &str| {
        settings
            .filter
            .omit
            .iter()
            .any(|(pattern, names)| pattern.matches(&context.log_name) && names.iter().any(|omit| omit == name))
    };
    let kept = context.logs.0.iter().filter(|(key, _)| !omitted(&characters(key.get())));
    let members: Vec<_> =
        kept.map(|(key, value)| format!("{}:{}", key.get(), without_white_space(value.get()))).collect();
    format!("{{{}}}", members.join(","))
}
