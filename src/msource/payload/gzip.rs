//! gzip members (RFC 1952). The framing is read here rather than by a reader type, so that the inflate state, 43 KB of
//! it, is reused from value to value.

use std::fmt;

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::{Fault, Input, Output};

const HEADER_CHECKSUM: u8 = 0x02;
const EXTRA: u8 = 0x04;
const NAME: u8 = 0x08;
const COMMENT: u8 = 0x10;
const RESERVED: u8 = 0xe0;

/// The inflate state, made when the first gzip value comes.
#[derive(Default)]
pub(super) struct Inflater(Option<Decompress>);

impl Inflater {
    /// Decompresses every member.
    pub(super) fn decompress(&mut self, input: &mut Input<'_>, output: &mut Output) -> Result<(), Fault> {
        let inflate = self.0.get_or_insert_with(|| Decompress::new(false));
        while !input.is_empty() {
            skip_header(input)?;
            let start = output.used;
            inflate.reset(false);
            inflate_member(inflate, input, output)?;
            check_trailer(input, &output.written()[start..])?;
        }
        Ok(())
    }
}

/// What the trailer of the last member says.
pub(super) fn claimed_size(value: &[u8]) -> Option<u64> {
    value.last_chunk().map(|length| u32::from_le_bytes(*length).into())
}

fn skip_header(input: &mut Input<'_>) -> Result<(), Fault> {
    let whole = input.0;
    let [id1, id2, method, flags, ..] = input.array::<10>()?;
    if [id1, id2, method] != [0x1f, 0x8b, 8] || flags & RESERVED != 0 {
        return Err(Fault::corrupt("bytes that are no gzip member"));
    }
    if flags & EXTRA != 0 {
        let length = u16::from_le_bytes(input.array()?);
        input.take(usize::from(length))?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = memchr::memchr(0, input.0).ok_or(Fault::TRUNCATED)?;
            input.take(end + 1)?;
        }
    }
    if flags & HEADER_CHECKSUM != 0 {
        let mut crc = Crc::new();
        crc.update(&whole[..whole.len() - input.0.len()]);
        if u16::from_le_bytes(input.array()?) != crc.sum() as u16 {
            return Err(Fault::corrupt("the header's checksum does not match"));
        }
    }
    Ok(())
}

fn inflate_member(inflate: &mut Decompress, input: &mut Input<'_>, output: &mut Output) -> Result<(), Fault> {
    loop {
        // Doubles with what came so far, so that a bomb costs no more than what it really holds.
        let wanted = input.0.len().saturating_mul(4).max(output.used);
        let space = output.space(wanted.max(1));
        let (consumed, produced) = (inflate.total_in(), inflate.total_out());
        let status = inflate
            .decompress(input.0, space, FlushDecompress::None)
            .map_err(|error| Fault::corrupt(format!("invalid deflate data ({error})")))?;
        let consumed = (inflate.total_in() - consumed) as usize;
        let produced = (inflate.total_out() - produced) as usize;
        input.take(consumed)?;
        output.advance(produced)?;
        match status {
            Status::StreamEnd => return Ok(()),
            Status::Ok | Status::BufError if consumed == 0 && produced == 0 => return Err(Fault::TRUNCATED),
            Status::Ok | Status::BufError => {}
        }
    }
}

fn check_trailer(input: &mut Input<'_>, member: &[u8]) -> Result<(), Fault> {
    let mut crc = Crc::new();
    crc.update(member);
    if input.u32_le()? != crc.sum() {
        return Err(Fault::corrupt("the checksum does not match"));
    }
    if input.u32_le()? != member.len() as u32 {
        return Err(Fault::corrupt("the length does not match"));
    }
    Ok(())
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inflater")
    }
}
