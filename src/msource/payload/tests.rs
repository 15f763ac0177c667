//! Every codec against what real compressors write, and against bytes that none would.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1 << 20;
const RECORD: &[u8] =
    br#"{"headers":{"app_id":24,"log_name":"log_item"},"logs":{"role_id":6001310009300,"mtime":1608184243,"via":"36|3100"}}"#;
/// The shortest value that can become a line, apart from its ids.
const SHORTEST: &[u8] = br#"{"headers":{"log_name":"a"},"logs":{}}"#;

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn gzip_with_every_header_field(data: &[u8]) -> Vec<u8> {
    let builder = flate2::GzBuilder::new().filename("a.json").comment("hand made").extra(vec![7; 300]).mtime(7);
    let mut encoder = builder.write(Vec::new(), Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    ::zstd::bulk::compress(data, 3).unwrap()
}

fn zstd_of_unknown_size(data: &[u8]) -> Vec<u8> {
    let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn lz4_with(info: FrameInfo, data: &[u8]) -> Vec<u8> {
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn lz4(data: &[u8]) -> Vec<u8> {
    lz4_with(FrameInfo::new(), data)
}

fn lz4_linked(data: &[u8]) -> Vec<u8> {
    let info = FrameInfo::new()
        .block_mode(BlockMode::Linked)
        .block_size(BlockSize::Max64KB)
        .block_checksums(true)
        .content_checksum(true)
        .content_size(Some(data.len() as u64));
    lz4_with(info, data)
}

fn snappy_raw(data: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(data).unwrap()
}

fn snappy_framed(data: &[u8]) -> Vec<u8> {
    let mut encoder = snap::write::FrameEncoder::new(Vec::new());
    encoder.write_all(data).unwrap();
    encoder.into_inner().unwrap()
}

fn snappy_xerial(data: &[u8]) -> Vec<u8> {
    let mut value = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01".to_vec();
    for chunk in data.chunks(32 << 10) {
        let block = snappy_raw(chunk);
        value.extend((block.len() as u32).to_be_bytes());
        value.extend(block);
    }
    value
}

type Encode = fn(&[u8]) -> Vec<u8>;

const ENCODERS: [(&str, Payload, Encode); 9] = [
    ("gzip", Payload::Gzip, gzip),
    ("gzip with every header field", Payload::Gzip, gzip_with_every_header_field),
    ("zstd", Payload::Zstd, zstd),
    ("zstd of unknown size", Payload::Zstd, zstd_of_unknown_size),
    ("lz4", Payload::Lz4, lz4),
    ("lz4 linked", Payload::Lz4, lz4_linked),
    ("raw snappy", Payload::Snappy, snappy_raw),
    ("framed snappy", Payload::Snappy, snappy_framed),
    ("xerial snappy", Payload::Snappy, snappy_xerial),
];

const PAYLOADS: [Payload; 6] =
    [Payload::Auto, Payload::None, Payload::Snappy, Payload::Gzip, Payload::Zstd, Payload::Lz4];

/// JSON of about so many bytes that compresses like a log.
fn json(bytes: usize) -> Vec<u8> {
    let mut text = RECORD[..RECORD.len() - 2].to_vec();
    let mut member = 0_u64;
    while text.len() < bytes {
        write!(text, ",\"member_{member}\":{}", member.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap();
        member += 1;
    }
    text.extend(b"}}");
    text
}

fn detail(result: Result<&[u8], Reject>) -> String {
    let reject = result.unwrap_err();
    assert_eq!(reject.reason, Reason::BadPayload);
    reject.detail.into_owned()
}

#[test]
fn every_codec_round_trips_by_its_name_and_by_auto_with_one_decoder() {
    let mut auto = Decoder::new(Payload::Auto, LIMIT);
    for (name, payload, encode) in ENCODERS {
        let mut named = Decoder::new(payload, LIMIT);
        for size in [0, 200, 532, 70_000, 300_000, 532] {
            let text = json(size);
            let value = encode(&text);
            assert_eq!(named.decode(&value).unwrap(), text, "{name} {size}");
            assert_eq!(auto.decode(&value).unwrap(), text, "auto on {name} {size}");
        }
    }
}

#[test]
fn plain_values_are_handed_through_in_place() {
    for value in
        [RECORD, SHORTEST, b"{}", b"{", b"{ \n\"a\":1}", b" {}", b"\n{", b"\xef\xbb\xbf{}", b"", b"[1]", b"nonsense"]
    {
        for payload in [Payload::Auto, Payload::None] {
            let mut decoder = Decoder::new(payload, 1);
            assert!(std::ptr::eq(decoder.decode(value).unwrap(), value), "{:?}", value.escape_ascii().to_string());
        }
    }
}

#[test]
fn none_hands_compressed_values_through() {
    for (name, _, encode) in ENCODERS {
        let value = encode(RECORD);
        assert_eq!(Decoder::new(Payload::None, LIMIT).decode(&value).unwrap(), value, "{name}");
    }
}

#[test]
fn a_named_codec_does_not_take_plain_json() {
    for payload in [Payload::Snappy, Payload::Gzip, Payload::Zstd, Payload::Lz4] {
        let mut decoder = Decoder::new(payload, LIMIT);
        for value in [RECORD, b"{}"] {
            detail(decoder.decode(value));
        }
        assert_eq!(decoder.decode(b""), Ok(&b""[..]), "what is empty was never compressed");
    }
}

#[test]
fn auto_tells_raw_snappy_of_every_length_from_json() {
    assert_eq!(SHORTEST.len(), 38);
    let mut decoder = Decoder::new(Payload::Auto, LIMIT);
    for length in (38..1_500).chain(16_300..16_500) {
        let mut text = SHORTEST[..SHORTEST.len() - 2].to_vec();
        text.resize(length - 2, b' ');
        text.extend(b"}}");
        assert_eq!(text.len(), length);
        for lead in [&b""[..], b"\n", b"  ", b"\xef\xbb\xbf"] {
            let text = [lead, &text].concat();
            let value = snappy_raw(&text);
            assert_eq!(decoder.decode(&value).unwrap(), text, "{length}");
        }
    }
}

#[test]
fn auto_rejects_what_has_a_magic_and_is_broken_and_hands_the_rest_through() {
    let mut decoder = Decoder::new(Payload::Auto, LIMIT);
    assert_eq!(detail(decoder.decode(b"\x1f\x8bnonsense")), "gzip: bytes that are no gzip member");
    assert_eq!(detail(decoder.decode(b"\x04\x22\x4d\x18")), "lz4: truncated");
    assert!(detail(decoder.decode(b"\x28\xb5\x2f\xfdnonsense")).starts_with("zstd: "));
    assert!(detail(decoder.decode(b"\x82SNAPPY\x00\x00\x00")).starts_with("xerial snappy: truncated"));
    let raw = snappy_raw(RECORD);
    assert!(detail(decoder.decode(&raw[..raw.len() - 1])).starts_with("snappy: "));
    for value in [&b"\x00\x01\x02"[..], b"\xff\xfe{\x00}\x00", b"BAD", b"\x1f", b"\xff\xff\xff\xff\xff\xff"] {
        assert_eq!(decoder.decode(value).unwrap(), value);
    }
}

#[test]
fn members_and_frames_one_after_the_other_are_one_value() {
    let (head, tail) = RECORD.split_at(50);
    for (name, payload, encode) in ENCODERS {
        if name == "raw snappy" {
            continue;
        }
        let value = [encode(head), encode(tail)].concat();
        assert_eq!(Decoder::new(payload, LIMIT).decode(&value).unwrap(), RECORD, "{name}");
        assert_eq!(Decoder::new(Payload::Auto, LIMIT).decode(&value).unwrap(), RECORD, "{name}");
    }
}

#[test]
fn skippable_frames_and_chunks_are_skipped() {
    let skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc";
    for (payload, encode) in [(Payload::Zstd, zstd as Encode), (Payload::Lz4, lz4)] {
        let value = [&skippable[..], &encode(RECORD), skippable].concat();
        assert_eq!(Decoder::new(payload, LIMIT).decode(&value).unwrap(), RECORD);
    }
    let value = [&snappy_framed(RECORD)[..], b"\xfe\x02\x00\x00\x00\x00\x80\x01\x00\x00x"].concat();
    assert_eq!(Decoder::new(Payload::Auto, LIMIT).decode(&value).unwrap(), RECORD);
}

#[test]
fn auto_tells_the_codec_behind_skippable_frames_and_so_does_a_claim() {
    let skippable = |magic: u8, data: &[u8]| {
        let length = (data.len() as u32).to_le_bytes();
        [&[magic, 0x2a, 0x4d, 0x18], &length[..], data].concat()
    };
    // As pzstd begins a value, and as anybody may.
    for before in [
        skippable(0x50, &[7, 0, 0, 0]),
        skippable(0x5f, b""),
        [skippable(0x53, b"x"), skippable(0x50, b"{\"")].concat(),
    ] {
        for frame in [zstd(RECORD), lz4_linked(RECORD)] {
            let value = [&before[..], &frame].concat();
            assert_eq!(Decoder::new(Payload::Auto, LIMIT).decode(&value).unwrap(), RECORD);
            assert_eq!(claimed_size(Payload::Auto, LIMIT, &value), RECORD.len() as u64);
        }
    }
    for cut in [skippable(0x50, b"")[..7].to_vec(), skippable(0x50, b"abc")[..10].to_vec(), b"P*M\x18".to_vec()] {
        assert!(
            Decoder::new(Payload::Auto, LIMIT).decode(&cut).is_err() || claimed_size(Payload::Auto, LIMIT, &cut) <= 80
        );
    }
}

#[test]
fn a_value_cut_at_any_byte_is_rejected() {
    let text = json(532);
    for (name, payload, encode) in ENCODERS {
        let value = encode(&text);
        // Without an end mark, a framed value may end wherever a chunk or block does.
        let whole: &[usize] = match name {
            "framed snappy" => &[10],
            "xerial snappy" => &[8, 16],
            _ => &[],
        };
        for payload in [payload, Payload::Auto] {
            let mut decoder = Decoder::new(payload, LIMIT);
            for length in 10..value.len() {
                let result = decoder.decode(&value[..length]);
                if whole.contains(&length) {
                    assert!(result.is_err() || result == Ok(b""), "{name} cut at {length}");
                } else {
                    assert!(result.is_err(), "{name} cut at {length}: {result:?}");
                }
            }
        }
    }
}

#[test]
fn bytes_after_the_end_are_rejected() {
    for (name, payload, encode) in ENCODERS {
        for garbage in [&b"\0"[..], b"garbage that is longer than any header of a frame"] {
            let value = [&encode(RECORD), garbage].concat();
            assert!(Decoder::new(payload, LIMIT).decode(&value).is_err(), "{name}");
            assert!(Decoder::new(Payload::Auto, LIMIT).decode(&value).is_err(), "auto on {name}");
        }
    }
}

#[test]
fn a_flipped_bit_is_noticed_wherever_the_format_has_a_checksum() {
    let text = json(532);
    for (name, payload, encode) in ENCODERS {
        // Neither the raw block nor xerial has any; a member's name and time and a frame without options neither.
        let checked = matches!(name, "zstd of unknown size" | "lz4 linked" | "framed snappy");
        // The type of a framed chunk is not covered either: one bit makes it a chunk to skip.
        let skipped = name == "framed snappy";
        let value = encode(&text);
        let mut decoder = Decoder::new(payload, LIMIT);
        for bit in 0..value.len() * 8 {
            let mut broken = value.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            let result = decoder.decode(&broken);
            if checked {
                let right = result == Ok(&text[..]) || skipped && result == Ok(b"");
                assert!(result.is_err() || right, "{name} bit {bit}");
            }
            Decoder::new(Payload::Auto, LIMIT).decode(&broken).ok();
        }
    }
}

#[test]
fn the_limit_is_exact() {
    for size in [532, 70_000, 300_000] {
        let text = json(size);
        for (name, payload, encode) in ENCODERS {
            let value = encode(&text);
            assert_eq!(Decoder::new(payload, text.len()).decode(&value).unwrap(), text, "{name}");
            let limit = text.len() - 1;
            let detail = detail(Decoder::new(payload, limit).decode(&value));
            assert!(detail.ends_with(&format!(": more than {limit} bytes when decompressed")), "{name}: {detail}");
        }
    }
}

#[test]
fn a_bomb_is_rejected_without_the_memory_it_asks_for() {
    let zeros = vec![b' '; 16 << 20];
    for (name, payload, encode) in ENCODERS {
        let mut decoder = Decoder::new(payload, LIMIT);
        decoder.decode(&encode(&zeros)).unwrap_err();
        assert!(decoder.output.buffer.len() <= LIMIT + 1, "{name}");
    }
}

#[test]
fn a_claimed_size_is_not_believed() {
    // 4 GiB less one in a raw snappy header; a 4 MiB block in an lz4 frame of a few bytes.
    let mut decoder = Decoder::new(Payload::Snappy, usize::MAX);
    assert_eq!(
        detail(decoder.decode(b"\xff\xff\xff\xff\x0f\x00{")),
        "snappy: 7 bytes cannot hold the 4294967295 that they claim"
    );
    assert_eq!(decoder.output.buffer.len(), 0);
    let frame = lz4_with(FrameInfo::new().block_size(BlockSize::Max4MB), RECORD);
    let mut decoder = Decoder::new(Payload::Lz4, usize::MAX);
    assert_eq!(decoder.decode(&frame).unwrap(), RECORD);
    assert!(decoder.output.buffer.len() < 64 << 10);
    let claims_a_terabyte = b"\x28\xb5\x2f\xfd\xe0\0\0\0\0\0\x01\0\0\x01\0\0";
    let mut decoder = Decoder::new(Payload::Zstd, usize::MAX);
    detail(decoder.decode(claims_a_terabyte));
    assert!(decoder.output.buffer.len() < 64 << 10);
}

#[test]
fn a_value_says_how_long_it_is_where_its_format_lets_it() {
    let text = json(70_000);
    for (name, payload, encode) in ENCODERS {
        let value = encode(&text);
        let expected = match name {
            // No block of it holds more.
            "zstd of unknown size" => 128 << 10,
            "lz4" | "framed snappy" | "xerial snappy" => 8 * value.len(),
            _ => text.len(),
        };
        for payload in [payload, Payload::Auto] {
            assert_eq!(claimed_size(payload, usize::MAX, &value), expected as u64, "{name}");
            assert_eq!(claimed_size(payload, 1000, &value), 1000, "{name}: no more is ever made of it");
        }
        assert_eq!(claimed_size(Payload::None, usize::MAX, &value), 0, "{name}");
    }
    assert_eq!(claimed_size(Payload::Auto, usize::MAX, RECORD), 0);
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let frames = [zstd(b""), skippable, zstd_of_unknown_size(b""), zstd(&text), zstd_of_unknown_size(&text)];
    let claimed = claimed_size(Payload::Zstd, usize::MAX, &frames.concat());
    assert_eq!(claimed, text.len() as u64 + (128 << 10), "every frame counts");
    let spaces = zstd_of_unknown_size(&vec![b' '; 7_000_000]);
    assert!(spaces.len() < 2_000);
    let claimed = claimed_size(Payload::Auto, usize::MAX, &spaces);
    assert!((6_800_000..7_100_000).contains(&claimed), "zstd has no bound on its ratio, but its blocks do: {claimed}");
    assert_eq!(claimed_size(Payload::Snappy, usize::MAX, b"\xff\xff\xff\xff\x0f\x00{"), 7 * 22, "no more fits into it");
}

#[test]
fn a_buffer_that_a_huge_value_made_is_given_back() {
    let mut decoder = Decoder::new(Payload::Gzip, 64 << 20);
    let huge = json(3 << 20);
    assert_eq!(decoder.decode(&gzip(&huge)).unwrap(), huge);
    assert_eq!(decoder.decode(&gzip(RECORD)).unwrap(), RECORD);
    assert!(decoder.output.buffer.len() <= Output::KEPT);
}

proptest! {
    #[test]
    fn any_text_survives_any_codec(text in prop::collection::vec(any::<u8>(), 1..5_000), which in 0..ENCODERS.len()) {
        let (_, payload, encode) = ENCODERS[which];
        let value = encode(&text);
        let mut decoder = Decoder::new(payload, LIMIT);
        prop_assert_eq!(decoder.decode(&value).unwrap(), text);
    }

    #[test]
    fn any_bytes_give_an_answer_within_the_limit(
        value in prop::collection::vec(any::<u8>(), 0..300), head in 0..8_usize, limit in 0..2_000_usize
    ) {
        let heads: [&[u8]; 8] = [
            b"", b"\x1f\x8b\x08\x00\0\0\0\0\0\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18\x40\x40\xc0", IDENTIFIER_AND_DATA,
            b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01", b"\xf0\x01\xf0\x40{", b"\x50\x2a\x4d\x18",
        ];
        let value = [heads[head], &value].concat();
        for payload in PAYLOADS {
            prop_assert!(claimed_size(payload, limit, &value) <= limit as u64);
            if let Ok(text) = Decoder::new(payload, limit).decode(&value) {
                prop_assert!(text == value || text.len() <= limit);
            }
        }
    }
}

const IDENTIFIER_AND_DATA: &[u8] = b"\xff\x06\x00\x00sNaPpY\x00\x20\x00\x00";
