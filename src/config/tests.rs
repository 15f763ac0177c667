//! The whole way from files to configuration, mistakes included.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::FixedOffset;
use proptest::prelude::*;

use super::schema::{self, KEYS, Shape};
use super::*;
use crate::zone::Tzdata;

const LOCAL: &str = "mtga.local.yml";

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A home with config files.
struct Home(tempfile::TempDir);

impl Home {
    fn new(files: &[(&str, &str)]) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        for (name, text) in [("msource.yml", ""), ("mtga.yml", "")].iter().chain(files) {
            home.write(name, text);
        }
        home
    }

    fn write(&self, name: &str, text: &str) {
        let dir = self.0.path().join("config");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), text).unwrap();
    }

    fn sources(&self, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
        sources(self.0.path(), &self.0.path().join("config"), env, flags)
    }

    fn load(&self, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Loaded {
        load(&self.sources(env, flags)).unwrap_or_else(|mistakes| panic!("{mistakes:#?}"))
    }

    fn mistakes(&self, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Vec<String> {
        load(&self.sources(env, flags)).unwrap_err().iter().map(ToString::to_string).collect()
    }
}

fn sources(home: &Path, dir: &Path, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let env: BTreeMap<_, _> = owned(env).into_iter().collect();
    Sources { home: home.to_owned(), dir: dir.to_owned(), env, flags: owned(flags), cpus: 4 }
}

/// The defaults of the contract, written out.
fn defaults(home: &Path) -> Config {
    Config {
        home: home.to_owned(),
        kafka: Kafka {
            brokers: "127.0.0.1:9092".into(),
            topics: vec!["mulog_clean_24".into()],
            group_id: "mtga_24".into(),
            assignment: Assignment::Group,
            start: Start::Earliest,
            out_of_range: OutOfRange::Earliest,
            instance_id: String::new(),
            payload: Payload::Auto,
            librdkafka: BTreeMap::new(),
        },
        store: Store {
            path: home.join("tmp/store"),
            history: Duration::from_hours(24),
            history_bytes: 2 << 30,
            checkpoint: Duration::from_secs(1),
        },
        failure_queue: FailureQueue {
            max_attempts: 5,
            backoff_from: Duration::from_secs(1),
            backoff_to: Duration::from_mins(5),
            max_bytes: 1 << 30,
            when_full: WhenFull::Pause,
        },
        rpc: Rpc {
            socket: home.join("tmp/mtga.sock"),
            permissions: 0o600,
            group: String::new(),
            timeout: Duration::from_secs(10),
        },
        memory: 128 << 20,
        app_id: 24,
        workers: 4,
        time_zone: TimeZone::Fixed(FixedOffset::east_opt(8 * 3600).unwrap()),
        settings: home.join("settings"),
        validation: Validation::Standard,
        uuid: false,
        sink: Sink {
            mode: Mode::Batch,
            dir: home.join("data"),
            file: "ta.{app_id}.%Y-%m-%d-%H.{seq}.log".into(),
            batch: Batch { lines: 1000, bytes: 1 << 20, linger: Duration::from_millis(200) },
            rotate: Rotate { size: 256 << 20, age: Duration::from_hours(1), idle: Duration::from_mins(1) },
            fsync: true,
            visibility: Visibility::Live,
            compression: Compression::None,
            keep_age: None,
            keep_bytes: None,
            max_open_files: 256,
            permissions: 0o640,
        },
        http: Http { listen: String::new(), hosts: Vec::new(), token: String::new() },
        log: Log {
            dir: home.join("logs"),
            level: Level::Info,
            rotation: Rotation::Daily,
            max_size: 100 << 20,
            keep: 20,
            stack_level: Level::Error,
        },
        reporter: Reporter {
            url: String::new(),
            format: "json".into(),
            level: Level::Error,
            min_interval: Duration::from_mins(1),
        },
    }
}

#[test]
fn without_any_setting_the_defaults_of_the_contract_are_in_force() {
    let home = Home::new(&[]);
    assert_eq!(
        home.load(&[], &[]),
        Loaded { config: defaults(home.0.path()), warnings: Vec::new(), exposed: Vec::new() }
    );
}

#[test]
fn the_shipped_files_are_the_defaults() {
    let root = Path::new("/srv/mtga");
    let loaded = load(&sources(root, &repository().join("config"), &[], &[])).unwrap();
    assert_eq!(loaded, Loaded { config: defaults(root), warnings: Vec::new(), exposed: Vec::new() });
}

#[test]
fn the_shipped_files_show_every_key_that_this_version_serves() {
    for (file, layer) in [("msource.yml", layer::Layer::Msource), ("mtga.yml", layer::Layer::Mtga)] {
        let text = fs::read_to_string(repository().join("config").join(file)).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{file} is wider than 100 columns");
        let mut shown = Vec::new();
        leaves(&yaml::parse(&text).unwrap().unwrap(), "", &mut shown);
        let later = |path: &str| path.starts_with("http.") || path.starts_with("reporter.");
        let expected: Vec<_> =
            KEYS.iter().filter(|key| key.file == layer && !later(key.path)).map(|key| key.path.to_owned()).collect();
        assert_eq!(shown, expected, "{file}");
    }
}

fn leaves(node: &yaml::Node, path: &str, out: &mut Vec<String>) {
    match &node.value {
        yaml::Value::Map(members) if path != schema::PROPERTIES => {
            for member in members {
                let path = if path.is_empty() { member.key.clone() } else { format!("{path}.{}", member.key) };
                leaves(&member.node, &path, out);
            }
        }
        _ => out.push(path.to_owned()),
    }
}

#[test]
fn the_examples_in_the_shipped_files_are_right_when_they_are_uncommented() {
    let text = fs::read_to_string(repository().join("config").join(LOCAL)).unwrap();
    let (_, examples) = text.split_once("\n\n").unwrap();
    let home = Home::new(&[(LOCAL, &examples.replace("# ", ""))]);
    let config = home.load(&[], &[]).config;
    assert_eq!((config.sink.mode, config.log.level, config.kafka.start), (Mode::Stream, Level::Debug, Start::Latest));
}

#[test]
fn every_variable_in_the_shipped_environment_sets_a_key_or_is_used_in_the_files() {
    let dir = repository().join("config");
    let text = |name| fs::read_to_string(dir.join(name)).unwrap();
    let files = text("msource.yml") + &text("mtga.yml");
    let environment = text("common.env");
    let names: Vec<_> =
        environment.lines().filter_map(|line| line.strip_prefix("# export ")?.split('=').next()).collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        let sets_a_key = KEYS.iter().any(|key| schema::variable(key.path) == name);
        assert!(sets_a_key || files.contains(&format!("${{{name}")), "{name}");
    }
    assert!(environment.lines().all(|line| line.is_empty() || line.starts_with('#')), "nothing is set by default");
}

#[test]
fn the_age_of_a_file_depends_on_its_visibility_unless_it_is_set() {
    let home = Home::new(&[(LOCAL, "sink: {visibility: sealed, compression: zstd}")]);
    let sink = home.load(&[], &[]).config.sink;
    assert_eq!((sink.visibility, sink.compression), (Visibility::Sealed, Compression::Zstd));
    assert_eq!(sink.rotate.age, Duration::from_mins(5));
    assert_eq!(home.load(&[], &[("sink.rotate.age", "2h")]).config.sink.rotate.age, Duration::from_hours(2));
    let live = [("sink.visibility", "live"), ("sink.compression", "none")];
    assert_eq!(home.load(&[], &live).config.sink.rotate.age, Duration::from_hours(1));
    assert_eq!(home.load(&[], &[("sink.mode", "stream")]).config.sink.mode, Mode::Stream);
}

#[test]
fn a_later_layer_wins() {
    let mut home = Home::new(&[("mtga.yml", "sink: {mode: stream}\nlog: {level: warn}\nworkers: 1")]);
    assert_eq!(home.load(&[], &[]).config.sink.mode, Mode::Stream);
    home = Home::new(&[("mtga.yml", "workers: 1\nlog: {level: warn}"), (LOCAL, "workers: 2\nkafka: {group_id: x}")]);
    let config = home.load(&[], &[]).config;
    assert_eq!((config.workers, config.log.level, config.kafka.group_id.as_str()), (2, Level::Warn, "x"));
    assert_eq!(home.load(&[("MTGA_WORKERS", "3")], &[]).config.workers, 3);
    assert_eq!(home.load(&[("MTGA_WORKERS", "3")], &[("workers", "auto")]).config.workers, 4);
}

#[test]
fn every_key_can_be_set_from_the_environment_and_by_flag() {
    let home = Home::new(&[]);
    for key in KEYS.iter().filter(|key| key.shape == Shape::Scalar) {
        let name = schema::variable(key.path);
        assert_eq!(home.load(&[("MTGA_HOME", "/x")], &[]).warnings, Vec::<String>::new());
        // A text that no type but the free ones takes shows by its mistake that it arrived.
        let wrong = home.sources(&[(&name, "!")], &[(key.path, "!")]);
        let by_flag = Sources { env: BTreeMap::new(), ..wrong.clone() };
        let by_env = Sources { flags: Vec::new(), ..wrong };
        for (sources, place) in
            [(by_env, format!("environment: {name}:")), (by_flag, format!("command line: {}:", key.path))]
        {
            match load(&sources) {
                Err(mistakes) => {
                    assert!(mistakes.iter().all(|mistake| mistake.to_string().starts_with(&place)), "{mistakes:?}");
                }
                Ok(loaded) => {
                    let shown = loaded.config.to_yaml();
                    assert!(shown.contains("!\"") || shown.contains("***"), "{}: {shown}", key.path);
                }
            }
        }
    }
}

#[test]
fn lists_and_properties_come_from_the_environment_as_yaml() {
    let home = Home::new(&[("msource.yml", "kafka:\n  librdkafka: {debug: all, client.id: a}")]);
    let env = [
        ("MTGA_KAFKA__TOPICS", "[a, '^b.*']"),
        ("MTGA_HTTP__HOSTS", "one.example"),
        ("MTGA_KAFKA__LIBRDKAFKA", "{client.id: b, client.rack: r}"),
        ("MTGA_KAFKA__LIBRDKAFKA__SASL_PASSWORD", "{x: ${y}"),
    ];
    let config = home.load(&env, &[("kafka.librdkafka.client.rack", "s")]).config;
    assert_eq!(config.kafka.topics, ["a", "^b.*"]);
    assert_eq!(config.http.hosts, ["one.example"]);
    let properties: Vec<_> =
        config.kafka.librdkafka.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [("client.id", "b"), ("client.rack", "s"), ("debug", "all"), ("sasl.password", "{x: ${y}")];
    assert_eq!(properties, expected);
}

#[test]
fn a_variable_brings_no_structure_in() {
    let text = "kafka:\n  librdkafka: {ssl.ca.pem: \"${X}\"}\n  topics: ['${T:-a}', b]";
    let home = Home::new(&[("msource.yml", text)]);
    let config = home.load(&[("X", "a\nmemory: 1GiB # {x: [${Y}")], &[]).config;
    assert_eq!(config.kafka.librdkafka["ssl.ca.pem"], "a\nmemory: 1GiB # {x: [${Y}");
    assert_eq!(config.kafka.topics, ["a", "b"]);
    assert_eq!(config.memory, 128 << 20);
}

#[test]
fn what_cannot_be_seen_or_is_no_utf_8_is_refused_and_shown_escaped() {
    let home =
        Home::new(&[("msource.yml", "kafka:\n  group_id: \"g\\u00a0\"\n  brokers\u{a0}: x\n  brokers: ${B:-b:1}")]);
    let env = [
        ("MTGA_SINK__MODE", "stream\r"),
        ("MTGA_SINK__DIR", "da\u{200b}ta"),
        ("MTGA_KAFKA__LIBRDKAFKA__SASL_PASSWORD", "hunter2\r"),
        ("MTGA_KAFKA__LIBRDKAFKA__SSL_CA_PEM", "-----BEGIN\r\nEND"),
        ("MTGA_LOG__LEVEL", "\u{fffd}\u{fffd}"),
        ("B", "\u{fffd}:9092"),
    ];
    let mistakes = home.mistakes(&env, &[]).join("\n");
    for told in [
        "msource.yml:2: kafka.group_id: has the character `\\u{a0}`",
        "msource.yml:3: kafka.brokers\\u{a0}: unknown key",
        "msource.yml:4: kafka.brokers: the variable B is not UTF-8",
        "MTGA_SINK__MODE: has a carriage return (`\\r`)",
        "MTGA_SINK__DIR: has the character `\\u{200b}`",
        "MTGA_KAFKA__LIBRDKAFKA__SASL_PASSWORD: has a carriage return",
        "MTGA_LOG__LEVEL: is not UTF-8",
    ] {
        assert!(mistakes.contains(told), "{told}\n{mistakes}");
    }
    assert!(!mistakes.contains("hunter2") && !mistakes.contains("SSL_CA_PEM"), "{mistakes}");
    assert!(!mistakes.contains(['\r', '\u{a0}', '\u{200b}']), "{mistakes:?}");
    let home = Home::new(&[]);
    assert_eq!(home.load(&[("MTGA_KAFKA__TOPICS", "a, b")], &[]).config.kafka.topics, ["a", "b"]);
}

#[test]
fn a_reference_in_a_value_that_another_layer_replaced_needs_no_variable() {
    let home = Home::new(&[("msource.yml", "kafka: {group_id: \"${NONE}\"}"), (LOCAL, "kafka: {group_id: x}")]);
    assert_eq!(home.load(&[], &[]).config.kafka.group_id, "x");
}

#[test]
fn variables_that_set_nothing_and_keys_of_later_versions_are_warned_of() {
    let home = Home::new(&[("mtga.yml", "http:\n  listen: 127.0.0.1:7070\n")]);
    let env = [
        ("MTGA_SINK_MODE", "stream"),
        ("MTGA_LOG", "debug"),
        ("MTGA_HOME", "/x"),
        ("MTGA_REPORTER__URL", "https://h/s"),
    ];
    let expected = [
        "environment: MTGA_LOG sets no key and is ignored",
        "environment: MTGA_SINK_MODE sets no key and is ignored, did you mean MTGA_SINK__MODE?",
        "config/mtga.yml:2: http.listen: is checked but not used: this version does not serve it",
        "environment: MTGA_REPORTER__URL: is checked but not used: this version does not serve it",
    ];
    assert_eq!(home.load(&env, &[]).warnings, expected);
}

#[test]
fn mistakes_outside_of_files_name_variable_or_flag() {
    let home = Home::new(&[]);
    let env = [("MTGA_SINK__MODE", "strem"), ("MTGA_KAFKA__TOPICS", "[a"), ("MTGA_KAFKA__LIBRDKAFKA__GROUP_ID", "x")];
    let expected = [
        "environment: MTGA_KAFKA__TOPICS: no valid YAML: while parsing a flow sequence, expected ',' or ']' (column 1)",
        "environment: MTGA_SINK__MODE: `strem` is not one of stream, batch",
        "environment: MTGA_KAFKA__LIBRDKAFKA__GROUP_ID: mtga looks after group.id itself: set `kafka.group_id`",
        "command line: sink.mod: unknown key, did you mean `mode`?",
        "command line: memory: `1` is no size, write a whole number and a unit: 512B, 64KiB, 1MiB, 2GiB",
    ];
    assert_eq!(home.mistakes(&env, &[("sink.mod", "x"), ("memory", "1")]), expected);
}

#[test]
fn both_files_must_be_there_and_be_utf8() {
    let home = Home::new(&[]);
    let dir = home.0.path().join("config");
    fs::remove_file(dir.join("msource.yml")).unwrap();
    fs::write(dir.join("mtga.yml"), b"# a\nsink: {mode: \xff}").unwrap();
    let mistakes = home.mistakes(&[], &[]);
    assert_eq!(mistakes.len(), 2);
    assert!(mistakes[0].starts_with("config/msource.yml: cannot read this config file:"), "{}", mistakes[0]);
    assert_eq!(mistakes[1], "config/mtga.yml:2: this is no UTF-8, save the file in that encoding");
}

#[test]
fn a_socket_path_that_the_system_cannot_bind_is_a_mistake() {
    let mistakes = Home::new(&[]).mistakes(&[], &[("rpc.socket", &format!("/{}", "s".repeat(107)))]);
    let expected =
        "command line: rpc.socket: the path is 108 bytes long, a socket's can have 107: choose a shorter one";
    assert_eq!(mistakes, [expected]);
}

/// Every directory of `tests/golden/config` is a pair of files with mistakes, and what is told of them.
#[test]
fn every_golden_mistake_is_told_as_recorded() {
    let mut cases = 0;
    for entry in fs::read_dir(repository().join("tests/golden/config")).unwrap() {
        let case = entry.unwrap().path();
        let mut files = Vec::new();
        for name in ["msource.yml", "mtga.yml", LOCAL] {
            if let Ok(text) = fs::read_to_string(case.join(name)) {
                files.push((name, text));
            }
        }
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let found = Home::new(&files).mistakes(&[("SET", "x")], &[]).join("\n") + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(case.join("expected"), &found).unwrap();
        }
        assert_eq!(found, fs::read_to_string(case.join("expected")).unwrap_or_default(), "{}", case.display());
        cases += 1;
    }
    assert!(cases >= 40, "only {cases} golden cases found");
}

const SECRETS: &str = "kafka:\n  librdkafka: {sasl.password: hush, sasl.username: u, ssl.key.pem: hush}\n\
    http: {token: hush, listen: 'a:1'}\nreporter: {url: 'https://u:hush@h/hush?k=hush'}\n";

#[test]
fn what_is_written_is_read_again() {
    let text = "kafka: {topics: [a, '^b$'], start: '2020-12-17T13:50:43+08:00', instance_id: i-1, librdkafka: {client.id: 'a\"b\\'}}\n\
        time_zone: Asia/Shanghai\nsink: {file: '日本 $${x}{seq}', mode: stream}\nfailure_queue: {max_bytes: 1500KB}\n\
        store: {history: 90m}\nuuid: true\nhttp: {hosts: ['a b']}\n";
    let home = Home::new(&[(LOCAL, text)]);
    let config = home.load(&[], &[]).config;
    assert_eq!(config.sink.file, "日本 ${x}{seq}");
    let again = Home::new(&[(LOCAL, &config.to_yaml())]);
    assert_eq!(again.load(&[], &[]).config, Config { home: again.0.path().to_owned(), ..config });
}

#[test]
fn what_is_written_has_every_key_in_the_order_of_the_files() {
    let home = Home::new(&[]);
    let config = home.load(&[], &[]).config;
    let written: Vec<_> = config.entries().into_iter().map(|(path, _)| path).collect();
    assert_eq!(written, KEYS.iter().map(|key| key.path).collect::<Vec<_>>());
    let mut read = Vec::new();
    leaves(&yaml::parse(&config.to_yaml()).unwrap().unwrap(), "", &mut read);
    assert_eq!(read, written);
}

#[test]
fn no_secret_is_shown_anywhere() {
    let home = Home::new(&[(LOCAL, SECRETS)]);
    let loaded = home.load(&[], &[]);
    assert_eq!(loaded.config.kafka.librdkafka["sasl.password"], "hush");
    for shown in [
        loaded.config.to_yaml(),
        format!("{loaded:#?}"),
        format!("{:?}", home.sources(&[("X", "hush")], &[("http.token", "hush")])),
        loaded.warnings.join("\n"),
    ] {
        assert!(!shown.contains("hush"), "{shown}");
    }
    assert!(
        loaded
            .config
            .to_yaml()
            .contains(r#"librdkafka: {"sasl.password": "***", "sasl.username": "u", "ssl.key.pem": "***"}"#)
    );
    let reloaded = Home::new(&[(LOCAL, &loaded.config.to_yaml())]).load(&[], &[]).config;
    assert_eq!((reloaded.http.token.as_str(), reloaded.reporter.url.as_str()), ("***", "https://***@h/***"));
}

#[test]
fn no_mistake_shows_a_secret() {
    let text = "kafka:\n  librdkafka: {sasl.password: [hush], group.id: hush, Bad Name: hush, sasl.password: '${hush'}\n\
        http: {token: [hush]}\nreporter: {url: 'hush://h'}\nsecret: hush\n";
    let mistakes = Home::new(&[(LOCAL, text)]).mistakes(&[("MTGA_HTTP__TOKN", "hush")], &[]);
    assert!(mistakes.len() >= 7, "{mistakes:#?}");
    assert!(!mistakes.join("\n").contains("hush"), "{mistakes:#?}");
}

proptest! {
    #[test]
    fn no_text_makes_the_loader_panic(text in prop_oneof![
        any::<String>(),
        "(kafka|sink|topics|memory|librdkafka|mode|batch|[\\[\\]{}:,\"' \n$x1-]){0,24}",
    ]) {
        let mut values = values::Values::built_in();
        values.lay_file(layer::Layer::Local, &text);
        values.lay_flags(&[("memory".to_owned(), text.clone()), ("kafka.topics".to_owned(), text.clone()), (text.clone(), text)]);
        values.expand(&BTreeMap::new());
        let _ = build::config(&values, Path::new("/srv"), 4, &Tzdata::of(&BTreeMap::new()));
    }
}

#[test]
fn a_secret_in_a_file_that_everybody_can_read_is_told_with_its_place_and_nothing_else_is() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::new(&[]);
    let path = home.0.path().join("config/mtga.local.yml");
    let exposed = |text: &str, mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        home.load(&[("SECRET", "x")], &[]).exposed
    };
    let secret = "kafka:\n  librdkafka:\n    sasl.password: hunter2\n    sasl.username: me\n";
    let told = exposed(secret, 0o644);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("config/mtga.local.yml:3: kafka.librdkafka.sasl.password: every user"), "{told:?}");
    assert!(!told[0].contains("hunter2"));
    assert_eq!(exposed(secret, 0o640), Vec::<String>::new());
    assert_eq!(exposed("kafka:\n  librdkafka:\n    sasl.password: ${SECRET}\n", 0o644), Vec::<String>::new());
    assert_eq!(exposed("kafka:\n  librdkafka:\n    sasl.password: ${SECRET:-hunter2}\n", 0o644).len(), 1);
    assert_eq!(exposed("app_id: 24\n", 0o644), Vec::<String>::new());
}
