//! `#uuid`: a name for a record that is the same each time the record is read.
//!
//! XXH3-128, seed 0, over the length of the topic (u64), the topic, the length of the topic id (u64), the topic id, the
//! partition (i32) and the offset (i64), numbers little-endian; the hash big-endian is the UUID, with the bits of version 4
//! and the variant set over it. None of this may ever change: the receiver drops a repeat only when it has the same UUID.

use xxhash_rust::xxh3::xxh3_128;

use super::Record;

/// Written `xxxxxxxx-xxxx-4xxx-xxxx-xxxxxxxxxxxx`.
pub(super) fn of(record: &Record<'_>, buffer: &mut Vec<u8>) -> [u8; 36] {
    buffer.clear();
    for text in [record.topic, record.topic_id] {
        buffer.extend_from_slice(&(text.len() as u64).to_le_bytes());
        buffer.extend_from_slice(text.as_bytes());
    }
    buffer.extend_from_slice(&record.partition.to_le_bytes());
    buffer.extend_from_slice(&record.offset.to_le_bytes());
    let uuid = uuid::Builder::from_random_bytes(xxh3_128(buffer).to_be_bytes()).into_uuid();
    let mut text = [0; 36];
    uuid.hyphenated().encode_lower(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uuid(topic: &str, topic_id: &str, partition: i32, offset: i64) -> String {
        let record = Record { topic, topic_id, partition, offset, timestamp: None, value: None };
        String::from_utf8(of(&record, &mut Vec::new()).to_vec()).unwrap()
    }

    #[test]
    fn the_uuid_of_a_record_never_changes() {
        assert_eq!(
            uuid("mulog_clean_24", "AAAAAAAAAAAAAAAAAAAAAQ", 0, 6_171_720_626),
            "ba64a9c7-628c-463d-8d94-5384b774e039"
        );
        assert_eq!(uuid("mulog_clean_24", "", 3, 0), "8d5dd170-3e0a-4561-ac28-2777a5a7a422");
    }

    #[test]
    fn every_part_of_the_position_counts() {
        let all = [
            uuid("ab", "c", 1, 2),
            uuid("a", "bc", 1, 2),
            uuid("abc", "", 1, 2),
            uuid("ab", "c", 2, 1),
            uuid("ab", "c", 1, 3),
            uuid("ab", "", 1, 2),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn it_has_the_form_of_version_4() {
        for offset in 0..100 {
            let uuid = uuid::Uuid::parse_str(&uuid("topic", "", 0, offset)).unwrap();
            assert_eq!((uuid.get_version_num(), uuid.get_variant()), (4, uuid::Variant::RFC4122));
        }
    }
}
