//! The meaning of the two files: from placed JSON to rules, going on after each mistake.

use std::collections::BTreeMap;

use super::{Filter, Key, Mapping, Pattern, Template};
use crate::commentjson::{Member, Node, Place, Value};

/// Reads one file and collects its mistakes. A value with a mistake gives whatever is at hand: nobody sees it.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) mistakes: Vec<(Place, String)>,
}

impl Reader {
    /// The filter file: a list of what is dropped, or the long form.
    pub(super) fn filter(&mut self, node: &Node) -> Filter {
        let mut filter = Filter::default();
        if let Value::Array(_) = node.value {
            filter.drop = self.patterns(node);
            return filter;
        }
        let what = "a list of log names or an object with `drop`, `keep`, `omit`";
        for member in self.members(node, &["drop", "keep", "omit"], what) {
            match member.name.as_str() {
                "drop" => filter.drop = self.patterns(&member.node),
                "keep" => filter.keep = Some(self.kept(&member.node)),
                _ => filter.omit = self.omitted(&member.node),
            }
        }
        filter
    }

    fn kept(&mut self, node: &Node) -> Vec<Pattern> {
        if matches!(&node.value, Value::Array(items) if items.is_empty()) {
            self.mistake(node.place, "an empty `keep` lets no log pass, name some or remove it");
        }
        self.patterns(node)
    }

    fn omitted(&mut self, node: &Node) -> Vec<(Pattern, Vec<String>)> {
        let members = self.any_members(node, "an object of log names, each with a list of properties");
        members
            .into_iter()
            .map(|member| {
                let pattern = self.pattern(member.place, &member.name);
                let properties = self.items(&member.node, "a list of properties");
                (pattern, properties.iter().map(|item| self.name(item, "a property's name")).collect())
            })
            .collect()
    }

    fn patterns(&mut self, node: &Node) -> Vec<Pattern> {
        let items = self.items(node, "a list of log names");
        items
            .iter()
            .map(|item| {
                let name = self.name(item, "a log name");
                self.pattern(item.place, &name)
            })
            .collect()
    }

    fn pattern(&mut self, place: Place, text: &str) -> Pattern {
        if text.strip_suffix('*').unwrap_or(text).contains('*') {
            self.mistake(place, format!("`*` can only stand at the end, as in `tbllog_*`, not in `{text}`"));
        }
        Pattern::new(text)
    }

    /// The metadata file: a list of entries.
    pub(super) fn metadata(&mut self, node: &Node) -> Vec<Mapping> {
        let mut places = BTreeMap::new();
        let items = self.items(node, "a list of entries, one a log name");
        items
            .iter()
            .map(|item| {
                let (mapping, place) = self.mapping(item);
                if let Some(first) =
                    places.insert(mapping.log_name.clone(), place).filter(|_| !mapping.log_name.is_empty())
                {
                    let name = &mapping.log_name;
                    self.mistake(place, format!("log_name `{name}` already has an entry at {first}, keep one of them"));
                }
                mapping
            })
            .collect()
    }

    /// One entry, and the place of its log name.
    fn mapping(&mut self, node: &Node) -> (Mapping, Place) {
        let mut mapping = Mapping { log_name: String::new(), ..Mapping::built_in() };
        let mut log_name = None;
        let mut empty_name = None;
        let members = self.members(
            node,
            &["log_name", "event_name", "event_type", "metadata"],
            "an entry: an object with `log_name`",
        );
        let readable = !members.is_empty();
        for member in members {
            match member.name.as_str() {
                "log_name" => {
                    log_name = Some(member.node.place);
                    mapping.log_name = self.name(&member.node, "a log name");
                    if mapping.log_name != "*" && mapping.log_name.contains('*') {
                        self.mistake(
                            member.node.place,
                            "an entry is for one log name, or for all others with `*` alone",
                        );
                    }
                }
                "event_name" => {
                    empty_name = Some(member.node.place).filter(|_| member.node.value == Value::String(String::new()));
                    mapping.event_name = self.template(&member.node);
                }
                "event_type" => mapping.event_type = self.name(&member.node, "an event type such as `track`"),
                _ => mapping.keys = self.keys(&member.node),
            }
        }
        if readable && log_name.is_none() {
            self.mistake(node.place, "this entry has no `log_name`, name the log it is for, or `*` for all others");
        }
        if let Some(place) = empty_name.filter(|_| !mapping.event_type.starts_with("user_")) {
            self.mistake(place, "`event_name` is empty, only events of a `user_` type have none");
        }
        (mapping, log_name.unwrap_or(node.place))
    }

    fn keys(&mut self, node: &Node) -> Vec<Key> {
        let members = self.any_members(node, "an object of `#` keys");
        members
            .into_iter()
            .map(|member| {
                self.key_name(member);
                self.key(member)
            })
            .collect()
    }

    fn key_name(&mut self, member: &Member) {
        let name = &member.name;
        match name.strip_prefix('#') {
            None => self.mistake(member.place, format!("`{name}` must start with `#`: only `#` keys are mapped")),
            Some("event_name" | "type") => {
                self.mistake(
                    member.place,
                    format!("`{name}` comes from `event_name` and `event_type` of the entry, set those"),
                );
            }
            Some(rest) if rest.is_empty() || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
                self.mistake(member.place, format!("`{name}` is no key: `#` and letters, digits or `_`"));
            }
            Some(_) => {}
        }
    }

    fn key(&mut self, member: &Member) -> Key {
        let mut key = Key { name: member.name.clone(), field: None, default: Template::default() };
        let what = "an object with `field` and `default`";
        for member in self.members(&member.node, &["field", "default"], what) {
            if member.name == "default" {
                key.default = self.template(&member.node);
            } else if member.node.value != Value::Null {
                // `"null"` is how the files of old say that there is no field.
                let field = self.text(&member.node, "a member of `logs`");
                key.field = Some(field).filter(|field| !field.is_empty() && field != "null");
            }
        }
        key
    }

    fn template(&mut self, node: &Node) -> Template {
        let text = self.text(node, "text, with {name} for the members of `logs`");
        Template::parse(&text).unwrap_or_else(|message| {
            self.mistake(node.place, message);
            Template::default()
        })
    }

    /// Text that must not be empty.
    fn name(&mut self, node: &Node, what: &str) -> String {
        let text = self.text(node, what);
        if matches!(node.value, Value::String(_)) && text.is_empty() {
            self.mistake(node.place, format!("expected {what}, found an empty string"));
        }
        text
    }

    fn text(&mut self, node: &Node, what: &str) -> String {
        match &node.value {
            Value::String(text) => text.clone(),
            other => {
                self.mistake(node.place, format!("expected {what} in double quotes, found {}", other.kind()));
                String::new()
            }
        }
    }

    fn items<'a>(&mut self, node: &'a Node, what: &str) -> &'a [Node] {
        match &node.value {
            Value::Array(items) => items,
            other => {
                self.mistake(node.place, format!("expected {what}, found {}", other.kind()));
                &[]
            }
        }
    }

    /// The members of an object whose keys are free: each key once.
    fn any_members<'a>(&mut self, node: &'a Node, what: &str) -> Vec<&'a Member> {
        let Value::Object(members) = &node.value else {
            self.mistake(node.place, format!("expected {what}, found {}", node.value.kind()));
            return Vec::new();
        };
        let mut first = BTreeMap::new();
        for member in members {
            if let Some(place) = first.insert(&member.name, member.place) {
                self.mistake(member.place, format!("duplicate key `{}`, it already stands at {place}", member.name));
            }
        }
        members.iter().collect()
    }

    /// The members of an object that has no other keys than `known`.
    fn members<'a>(&mut self, node: &'a Node, known: &[&str], what: &str) -> Vec<&'a Member> {
        let mut members = self.any_members(node, what);
        members.retain(|member| {
            let is_known = known.contains(&member.name.as_str());
            if !is_known {
                let message = format!("unknown key `{}`, expected one of {}", member.name, known.join(", "));
                self.mistake(member.place, message);
            }
            is_known
        });
        members
    }

    fn mistake(&mut self, place: Place, message: impl Into<String>) {
        self.mistakes.push((place, message.into()));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::{Part, Settings, Sources};
    use super::*;

    fn parse(filter: &str, metadata: &str) -> Result<Settings, Vec<String>> {
        Settings::parse(&Sources { filter: filter.to_owned(), metadata: metadata.to_owned() })
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    fn mistakes(filter: &str, metadata: &str) -> Vec<String> {
        parse(filter, metadata).unwrap_err()
    }

    #[test]
    fn the_short_filter_form_drops_names_and_prefixes() {
        let filter = parse(r#"["tbllog_event", "tbllog_*", "*",]"#, "[]").unwrap().filter;
        let [exact, prefix] = [Pattern::Exact("tbllog_event".into()), Pattern::Prefix("tbllog_".into())];
        assert_eq!(filter, Filter { drop: vec![exact, prefix, Pattern::Prefix(String::new())], ..Filter::default() });
    }

    #[test]
    fn the_long_filter_form_keeps_and_omits_too() {
        let text = r#"{"drop": ["a"], "keep": ["log_*"], "omit": {"log_chat": ["content"], "*": ["imei"]}}"#;
        let filter = parse(text, "[]").unwrap().filter;
        assert_eq!(filter.drop, [Pattern::Exact("a".into())]);
        assert_eq!(filter.keep, Some(vec![Pattern::Prefix("log_".into())]));
        let omit = [
            (Pattern::Exact("log_chat".into()), vec!["content".to_owned()]),
            (Pattern::Prefix(String::new()), vec!["imei".to_owned()]),
        ];
        assert_eq!(filter.omit, omit);
    }

    #[test]
    fn a_mapping_is_read_with_its_keys_in_the_order_of_the_file() {
        let text = r##"[{"log_name": "log_item", "event_name": "t_{log_name}_x", "event_type": "user_set", "metadata": {
            "#time": {"field": "mtime", "default": ""}, "#account_id": {"field": "null", "default": "{account_name}"},
            "#ip": {"field": null}, "#lib": {}, "#distinct_id": {"field": "", "default": "a}"}}}]"##;
        let mapping = &parse("[]", text).unwrap().metadata[0];
        assert_eq!((mapping.log_name.as_str(), mapping.event_type.as_str()), ("log_item", "user_set"));
        let [before, name, behind] =
            [Part::Text("t_".into()), Part::Member("log_name".into()), Part::Text("_x".into())];
        assert_eq!(mapping.event_name.0, [before, name, behind]);
        let key = |name: &str, field: Option<&str>, default: &[Part]| Key {
            name: name.into(),
            field: field.map(Into::into),
            default: Template(default.to_vec()),
        };
        let keys = [
            key("#time", Some("mtime"), &[]),
            key("#account_id", None, &[Part::Member("account_name".into())]),
            key("#ip", None, &[]),
            key("#lib", None, &[]),
            key("#distinct_id", None, &[Part::Text("a}".into())]),
        ];
        assert_eq!(mapping.keys, keys);
    }

    #[test]
    fn what_an_entry_leaves_out_is_built_in() {
        let metadata = parse("[]", r#"[{"log_name": "log_pay"}]"#).unwrap().metadata;
        assert_eq!(metadata, [Mapping { log_name: "log_pay".into(), ..Mapping::built_in() }]);
    }

    #[test]
    fn every_mistake_of_both_files_is_told_at_once_with_its_place() {
        let filter = "{\"drop\": [\"\", 7, \"a*b\"],\n \"keep\": [],\n \"omits\": {},\n \"drop\": \"x\",\n \"omit\": {\"a\": [null]}}";
        let metadata = "[{\"log_name\": \"a\", \"evnt_name\": \"x\"},\n{\"log_name\": \"a\", \"event_name\": \"{x\"},\n\
            {\"event_name\": \"\", \"metadata\": {\"time\": {}, \"#type\": {}, \"#\": {}, \"#ip\": \"ip\",\n \"#ip\": {\"fild\": 1, \"field\": 1}}},\n\
            {\"log_name\": \"log_*\", \"event_type\": \"\"}, [],\n{\"log_name\": \"日本\", \"event_name\": \"{}\"}]";
        let expected = [
            "filter:1:11: expected a log name, found an empty string",
            "filter:1:15: expected a log name in double quotes, found a number",
            "filter:1:18: `*` can only stand at the end, as in `tbllog_*`, not in `a*b`",
            "filter:2:10: an empty `keep` lets no log pass, name some or remove it",
            "filter:3:2: unknown key `omits`, expected one of drop, keep, omit",
            "filter:4:2: duplicate key `drop`, it already stands at 1:2",
            "filter:4:10: expected a list of log names, found a string",
            "filter:5:17: expected a property's name in double quotes, found null",
            "metadata:1:20: unknown key `evnt_name`, expected one of log_name, event_name, event_type, metadata",
            "metadata:2:14: log_name `a` already has an entry at 1:15, keep one of them",
            "metadata:2:33: `{` in `{x` is not closed, end it with `}`",
            "metadata:3:1: this entry has no `log_name`, name the log it is for, or `*` for all others",
            "metadata:3:16: `event_name` is empty, only events of a `user_` type have none",
            "metadata:3:33: `time` must start with `#`: only `#` keys are mapped",
            "metadata:3:45: `#type` comes from `event_name` and `event_type` of the entry, set those",
            "metadata:3:58: `#` is no key: `#` and letters, digits or `_`",
            "metadata:3:74: expected an object with `field` and `default`, found a string",
            "metadata:4:2: duplicate key `#ip`, it already stands at 3:67",
            "metadata:4:10: unknown key `fild`, expected one of field, default",
            "metadata:4:30: expected a member of `logs` in double quotes, found a number",
            "metadata:5:14: an entry is for one log name, or for all others with `*` alone",
            "metadata:5:37: expected an event type such as `track`, found an empty string",
            "metadata:5:42: expected an entry: an object with `log_name`, found an array",
            "metadata:6:34: `{}` in `{}` names no member, write {name}",
        ];
        assert_eq!(mistakes(filter, metadata), expected);
    }

    #[test]
    fn a_file_that_is_no_json_does_not_hide_the_mistakes_of_the_other() {
        let expected = [
            "filter:2:1: expected a value, found the end of the file",
            "metadata:1:1: expected a list of entries, one a log name, found null",
        ];
        assert_eq!(mistakes("# empty\n", "null"), expected);
    }

    #[test]
    fn both_files_must_be_there_and_be_utf8() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mthinkingdata:metadata.24.json"), b"[\n \"\xe6\x97\xa5\xff\"]").unwrap();
        let mistakes = Settings::load(dir.path(), 24).unwrap_err();
        assert_eq!(mistakes.len(), 2);
        assert_eq!(mistakes[0].file, dir.path().join("mthinkingdata:filter.24.json"));
        assert!(mistakes[0].message.contains("it must exist"), "{}", mistakes[0]);
        assert!(
            mistakes[1].to_string().ends_with("metadata.24.json:2:4: this is no UTF-8, save the file in that encoding")
        );
    }

    #[test]
    fn the_shipped_files_are_the_built_in_rules() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("settings");
        let loaded = Settings::load(&dir, 24).unwrap();
        assert_eq!(loaded.settings, Settings { filter: Filter::default(), metadata: vec![Mapping::built_in()] });
        assert_eq!(Settings::parse(&loaded.sources).unwrap(), loaded.settings);
        assert_eq!(loaded.fingerprint, loaded.sources.fingerprint());
    }

    #[test]
    fn the_examples_in_the_shipped_files_are_right_when_they_are_uncommented() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("settings");
        let sources = Settings::load(&dir, 24).unwrap().sources;
        let uncommented = |text: &str| text.replace("\n  // ", "\n  ");
        let settings = Settings::parse(&Sources {
            filter: uncommented(&sources.filter),
            metadata: uncommented(&sources.metadata),
        })
        .unwrap();
        assert!(settings.filter.drop.len() >= 2 && settings.metadata.len() >= 3, "{settings:?}");
    }

    #[test]
    fn the_fingerprint_never_changes_and_tells_the_files_apart() {
        let of =
            |filter: &str, metadata: &str| Sources { filter: filter.into(), metadata: metadata.into() }.fingerprint();
        assert_eq!(of("[]", "[]"), "14aae673a8164e73516ef9e49a255224");
        assert_ne!(of("[] ", "[]"), of("[]", " []"));
        assert_ne!(of("[]", "[]"), of("[]", "[] "));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[\\[\\]{}:,\"\\\\ \n/*#a-z_]{0,60}") {
            let _ = parse(&text, &text);
        }

        #[test]
        fn a_template_gives_back_its_text(text in "[a-c{}日]{0,12}") {
            if let Ok(template) = Template::parse(&text) {
                let again: String = template.0.iter().map(|part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Member(name) => format!("{{{name}}}"),
                }).collect();
                prop_assert_eq!(again, text);
            }
        }
    }
}
