//! Blocks for tests of the workers.

use std::sync::Arc;

use crate::block::{RawBlock, Records, Source};
use crate::config::{Compression, Payload, TimeZone, Validation};
use crate::msource::TopicPartition;
use crate::msource::journal::QueueEntry;
use crate::record::{Reason, Reject};
use crate::transform::recipe::{Engine, Recipe};

pub(super) fn engine(compression: Compression) -> Arc<Engine> {
    let recipe = Recipe {
        transform: 1,
        app_id: 24,
        validation: Validation::Standard,
        uuid: false,
        zone: TimeZone::UTC.kept(),
        payload: Payload::None,
        payload_limit: 1 << 20,
        file: "{log_name}.{seq}.log".to_owned(),
        instance: String::new(),
        filter: "[]".to_owned(),
        metadata: "[]".to_owned(),
        read_uncommitted: false,
    };
    Arc::new(Engine { compression, ..recipe.engine("f").unwrap() })
}

/// Sixty records of three log names.
pub(super) fn block(engine: &Arc<Engine>) -> RawBlock {
    let entry = |n: u64| QueueEntry {
        partition: TopicPartition { topic: "t".into(), partition: 0 },
        topic_id: String::new(),
        offset: n as i64,
        timestamp: Some(1_608_184_243_000),
        key: None,
        headers: Vec::new(),
        value: format!(
            r#"{{"headers":{{"app_id":24,"log_name":"log_{}"}},"logs":{{"role_id":{n},"mtime":1608184243}}}}"#,
            n % 3
        )
        .into_bytes(),
        reject: Reject::new(Reason::NoId, ""),
        attempts: 1,
        first_failure: 0,
        last_failure: 0,
        recipe: "r".into(),
    };
    RawBlock {
        ticket: 0,
        source: Source::Queue(Vec::new()),
        records: Records::Queue((0..60).map(|n| (n, entry(n))).collect()),
        engine: Arc::clone(engine),
        now: 0,
        cost: 0,
    }
}

/// A block with these sizes of decompressed values, each sound and compressed without a word about its size.
pub(super) fn swelling(sizes: &[usize]) -> (Arc<Engine>, RawBlock) {
    let recipe = Recipe { payload: Payload::Auto, ..engine(Compression::None).recipe.clone() };
    let engine = Arc::new(recipe.engine("z").unwrap());
    let whole = block(&engine);
    let Records::Queue(entries) = whole.records else { unreachable!() };
    let records: Vec<_> = sizes
        .iter()
        .zip(entries)
        .map(|(size, (key, mut entry))| {
            let value = format!(
                r#"{{"headers":{{"app_id":24,"log_name":"l"}},"logs":{{"role_id":1,"mtime":1608184243,"t":"{}"}}}}"#,
                "x".repeat(*size)
            );
            entry.value = zstd::stream::encode_all(value.as_bytes(), 1).unwrap();
            (key, entry)
        })
        .collect();
    let source = Source::Queue(records.iter().map(|(key, entry)| (*key, entry.size())).collect());
    (engine, RawBlock { source, records: Records::Queue(records), cost: 500, ticket: 7, ..whole })
}
