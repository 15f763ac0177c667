//! What a value costs to unwrap, by codec: 1,000 generated records of about 532 bytes, each compressed by itself.

use std::hint::black_box;
use std::io::Write as _;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mtga::config::Payload;
use mtga::demo::records::Generator;
use mtga::msource::payload::Decoder;

const RECORDS: u64 = 1_000;

fn snappy(text: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(text).expect("compressing in memory")
}

fn framed_snappy(text: &[u8]) -> Vec<u8> {
    let mut encoder = snap::write::FrameEncoder::new(Vec::new());
    encoder.write_all(text).expect("compressing in memory");
    encoder.into_inner().expect("compressing in memory")
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).expect("compressing in memory");
    encoder.finish().expect("compressing in memory")
}

fn zstd(text: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(text, 3).expect("compressing in memory")
}

fn lz4(text: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(text).expect("compressing in memory");
    encoder.finish().expect("compressing in memory")
}

/// Compresses one record.
type Encode = fn(&[u8]) -> Vec<u8>;

const ENCODERS: [(&str, Encode); 6] = [
    ("plain", <[u8]>::to_vec),
    ("snappy", snappy),
    ("framed snappy", framed_snappy),
    ("gzip", gzip),
    ("zstd", zstd),
    ("lz4", lz4),
];

fn decode(criterion: &mut Criterion) {
    let generator = Generator::new(1);
    let mut text = Vec::new();
    let mut group = criterion.benchmark_group("payload");
    for (name, encode) in ENCODERS {
        let mut bytes = 0;
        let values: Vec<_> = (0..RECORDS)
            .map(|index| {
                generator.record(index, &mut text);
                bytes += text.len() as u64;
                encode(&text)
            })
            .collect();
        let mut decoder = Decoder::new(Payload::Auto, 1 << 20);
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for value in &values {
                    black_box(decoder.decode(black_box(value)).expect("the encoder's own output"));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
