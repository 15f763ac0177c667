//! LZ4 frames (the frame format 1.6), skippable ones included; no dictionaries, no legacy frames.
//!
//! The frame is read here because the reader of `lz4_flex` takes a frame that ends before its end mark for complete,
//! and allocates up to 8 MiB again for each value. The blocks are decompressed by `lz4_flex`.

use lz4_flex::block::{self, DecompressError};
use xxhash_rust::xxh32::xxh32;

use super::{Fault, Input, Output, behind_skippable};

const MAGIC: u32 = 0x184d_2204;
/// The first and the last magic of skippable frames.
const SKIPPABLE: std::ops::RangeInclusive<u32> = 0x184d_2a50..=0x184d_2a5f;

const RESERVED: u8 = 0x02;
const DICTIONARY: u8 = 0x01;
const CONTENT_CHECKSUM: u8 = 0x04;
const CONTENT_SIZE: u8 = 0x08;
const BLOCK_CHECKSUM: u8 = 0x10;
const INDEPENDENT: u8 = 0x20;

/// How far back a block may refer.
const WINDOW: usize = 64 << 10;
/// The bit of a block's length that says that it is stored as it is.
const STORED: u32 = 1 << 31;

/// Decompresses every frame.
pub(super) fn decompress(input: &mut Input<'_>, output: &mut Output) -> Result<(), Fault> {
    while !input.is_empty() {
        match input.u32_le()? {
            MAGIC => frame(input, output)?,
            magic if SKIPPABLE.contains(&magic) => {
                let length = input.u32_le()?;
                input.take(length as usize)?;
            }
            _ => return Err(Fault::corrupt("bytes that are no lz4 frame")),
        }
    }
    Ok(())
}

/// What the header of the first frame says.
pub(super) fn claimed_size(value: &[u8]) -> Option<u64> {
    let mut input = Input(behind_skippable(value));
    (input.u32_le() == Ok(MAGIC)).then(|| Descriptor::read(&mut input).ok()?.content_size).flatten()
}

/// What a frame's descriptor says.
struct Descriptor {
    flags: u8,
    /// Bound on a block's decompressed size.
    max_block: usize,
    content_size: Option<u64>,
}

impl Descriptor {
    fn read(input: &mut Input<'_>) -> Result<Self, Fault> {
        let whole = input.0;
        let [flags, sizes] = input.array()?;
        if flags >> 6 != 1 || flags & RESERVED != 0 || sizes & 0x8f != 0 {
            return Err(Fault::corrupt("unknown version of the frame format"));
        }
        if flags & DICTIONARY != 0 {
            return Err(Fault::corrupt("needs a dictionary"));
        }
        let max_block = match sizes >> 4 {
            code @ 4..=7 => 1 << (8 + 2 * code),
            code => return Err(Fault::corrupt(format!("unknown block size {code}"))),
        };
        let content_size = if flags & CONTENT_SIZE == 0 { None } else { Some(u64::from_le_bytes(input.array()?)) };
        let covered = &whole[..whole.len() - input.0.len()];
        let [checksum] = input.array()?;
        if checksum != (xxh32(covered, 0) >> 8) as u8 {
            return Err(Fault::corrupt("the header's checksum does not match"));
        }
        Ok(Self { flags, max_block, content_size })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

fn frame(input: &mut Input<'_>, output: &mut Output) -> Result<(), Fault> {
    let descriptor = Descriptor::read(input)?;
    let start = output.used;
    loop {
        let header = input.u32_le()?;
        if header == 0 {
            break;
        }
        let data = input.take((header & !STORED) as usize)?;
        if data.len() > descriptor.max_block {
            return Err(Fault::corrupt("a block is larger than the frame allows"));
        }
        if descriptor.has(BLOCK_CHECKSUM) && input.u32_le()? != xxh32(data, 0) {
            return Err(Fault::corrupt("a block's checksum does not match"));
        }
        if header & STORED == 0 {
            block(&descriptor, data, start, output)?;
        } else {
            output.extend(data)?;
        }
    }
    let content = &output.written()[start..];
    if descriptor.content_size.is_some_and(|size| size != content.len() as u64) {
        return Err(Fault::corrupt("the content size does not match"));
    }
    if descriptor.has(CONTENT_CHECKSUM) && input.u32_le()? != xxh32(content, 0) {
        return Err(Fault::corrupt("the content's checksum does not match"));
    }
    Ok(())
}

/// Decompresses one block; `start` is where the frame's output begins.
fn block(descriptor: &Descriptor, data: &[u8], start: usize, output: &mut Output) -> Result<(), Fault> {
    // No byte of a block stands for more than 255 bytes, however large the blocks that the frame announces.
    let bound = (data.len() * 255 + 64).min(descriptor.max_block);
    let (written, space) = output.split(bound);
    let offered = space.len().min(bound);
    let space = &mut space[..offered];
    let done = if descriptor.has(INDEPENDENT) || written.len() == start {
        block::decompress_into(data, space)
    } else {
        let window = start.max(written.len().saturating_sub(WINDOW));
        block::decompress_into_with_dict(data, space, &written[window..])
    };
    match done {
        Ok(count) => output.advance(count),
        Err(DecompressError::OutputTooSmall { .. }) if offered < bound => Err(Fault::TooLarge),
        Err(error) => Err(Fault::corrupt(format!("invalid block ({error})"))),
    }
}
