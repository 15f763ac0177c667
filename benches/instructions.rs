//! How many instructions the kernels take for a record, counted under valgrind by `scripts/bench-guard`.
//!
//!     instructions KERNEL RECORDS
//!
//! does one kernel's work on that many records. The difference between two runs, divided by the difference in records, is
//! free of what starting and preparing cost. An instruction count says the same on a busy machine as on a quiet one.
//!
//! **How it is built.** With `--cfg guard` the sources of the library are compiled into this program instead of being
//! linked: so they can be optimised without optimising the whole library, of which only what `main` reaches is
//! generated. Everything else, above all the lints, sees an ordinary program that uses the library. The modules below are
//! those that the kernels need, directly or not; a new dependency of theirs shows as a compiler's error, and is added here.

use std::hint::black_box;
use std::io::Write as _;

#[cfg(guard)]
#[path = "../src/block.rs"]
pub mod block;
#[cfg(guard)]
#[path = "../src/commentjson.rs"]
pub mod commentjson;
#[cfg(guard)]
#[path = "../src/config/mod.rs"]
pub mod config;
#[cfg(guard)]
#[path = "../src/control/mod.rs"]
pub mod control;
#[cfg(guard)]
#[path = "../src/delivery/mod.rs"]
pub mod delivery;
#[cfg(guard)]
#[path = "../src/durable.rs"]
pub mod durable;
#[cfg(guard)]
#[path = "../src/fault.rs"]
pub mod fault;
#[cfg(guard)]
#[path = "../src/flock.rs"]
pub mod flock;
#[cfg(guard)]
#[path = "../src/limits.rs"]
pub mod limits;
#[cfg(guard)]
#[path = "../src/msink/mod.rs"]
pub mod msink;
#[cfg(guard)]
#[path = "../src/msource/mod.rs"]
pub mod msource;
#[cfg(guard)]
#[path = "../src/panics.rs"]
pub mod panics;
#[cfg(guard)]
#[path = "../src/record.rs"]
pub mod record;
#[cfg(guard)]
#[path = "../src/regular.rs"]
pub mod regular;
#[cfg(guard)]
#[path = "../src/settings/mod.rs"]
pub mod settings;
#[cfg(guard)]
#[path = "../src/synced.rs"]
pub mod synced;
#[cfg(guard)]
#[path = "../src/terminal.rs"]
pub mod terminal;
#[cfg(guard)]
#[path = "../src/transform/mod.rs"]
pub mod transform;
#[cfg(guard)]
#[path = "../src/zone.rs"]
pub mod zone;

#[cfg(not(guard))]
use mtga::{config, msource, settings, transform};

use config::{Payload, TimeZone, Validation};
use msource::payload::Decoder;
use settings::Settings;
use transform::{Options, Record, Scratch, Transform};

const GOLDEN: &str = include_str!("../tests/golden/transform/golden_record/records.jsonl");

/// The golden record, its numbers varied as a game server's are, so that nothing is predicted that is not in production.
fn records() -> Vec<Vec<u8>> {
    (0..500_u64)
        .map(|index| {
            let noise = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let role = (6_001_310_000_000 + noise % 99_999_999).to_string();
            GOLDEN.trim_end().replace("6001310009300", &role).into_bytes()
        })
        .collect()
}

fn transform(records: &[Vec<u8>], count: usize) -> usize {
    let zone = chrono::FixedOffset::east_opt(8 * 3600).expect("eight hours are a valid offset");
    let options =
        Options { app_id: 24, validation: Validation::Standard, uuid: false, time_zone: TimeZone::Fixed(zone) };
    let transform = Transform::new(&Settings::default(), options);
    let (mut scratch, mut out) = (Scratch::default(), Vec::with_capacity(1 << 20));
    let mut bytes = 0;
    for (offset, value) in records.iter().cycle().take(count).enumerate() {
        if offset % 1_000 == 0 {
            bytes += out.len();
            out.clear();
        }
        let record = Record {
            topic: "mulog_clean_24",
            topic_id: "",
            partition: 0,
            offset: offset as i64,
            timestamp: None,
            value: Some(black_box(value)),
        };
        transform.apply(&mut scratch, &record, &mut out).expect("the record is good");
    }
    bytes + out.len()
}

fn decode(records: &[Vec<u8>], count: usize, encode: impl Fn(&[u8]) -> Vec<u8>) -> usize {
    let values: Vec<_> = records.iter().map(|record| encode(record)).collect();
    let mut decoder = Decoder::new(Payload::Auto, 1 << 20);
    let values = values.iter().cycle().take(count);
    values.map(|value| decoder.decode(black_box(value)).expect("the encoder's own output").len()).sum()
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    // Cargo's own runs (`cargo bench`, `cargo test --benches`) have nothing to count.
    let (Some(kernel), Some(count)) = (arguments.get(1), arguments.get(2).and_then(|count| count.parse().ok())) else {
        return;
    };
    let records = records();
    let work = match kernel.as_str() {
        "transform" => transform(&records, count),
        "plain" => decode(&records, count, <[u8]>::to_vec),
        "snappy" => {
            decode(&records, count, |text| snap::raw::Encoder::new().compress_vec(text).expect("compressing in memory"))
        }
        "gzip" => decode(&records, count, |text| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(text).expect("compressing in memory");
            encoder.finish().expect("compressing in memory")
        }),
        "zstd" => decode(&records, count, |text| zstd::bulk::compress(text, 3).expect("compressing in memory")),
        "lz4" => decode(&records, count, |text| {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(text).expect("compressing in memory");
            encoder.finish().expect("compressing in memory")
        }),
        other => panic!("no kernel is called {other}"),
    };
    black_box(work);
}
