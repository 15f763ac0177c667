//! What lies in one event file: read once, with one buffer, however large it is.

use std::fs::File;
use std::io::{self, Read};

use crate::config::Compression;

/// Bytes read at once: they stay in the processor's cache between checksum and count.
pub(super) const BUFFER: usize = 256 << 10;

/// What a file has in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// Its length as it lies on the disk.
    pub(super) bytes: u64,
    /// CRC-32C of it as it lies on the disk.
    pub(super) crc32c: u32,
    /// Lines, decompressed; or why there is no counting them.
    pub(super) lines: Result<u64, String>,
}

/// Reads a file to its end. The error is the disk's.
pub(super) fn read(file: File, how: Compression, buffer: &mut [u8]) -> io::Result<Contents> {
    let mut file = Checksummed { file, bytes: 0, crc32c: 0 };
    let length = file.file.metadata()?.len();
    let counted = match how {
        Compression::None => count(&mut file, buffer),
        // To the decoders it lacks a frame, to us it has no block.
        _ if length == 0 => Ok(Ok(0)),
        Compression::Gzip => count(&mut flate2::read::MultiGzDecoder::new(&mut file), buffer),
        Compression::Zstd => zstd::stream::read::Decoder::new(&mut file).and_then(|mut text| count(&mut text, buffer)),
    };
    let lines = match counted {
        Ok(lines) => lines,
        Err(error) if error.raw_os_error().is_some() => return Err(error),
        Err(error) => Err(format!("cannot be decompressed: {error}")),
    };
    // What the decoder left.
    io::copy(&mut file, &mut io::sink())?;
    Ok(Contents { bytes: file.bytes, crc32c: file.crc32c, lines })
}

/// Counts lines; a last one without its end is told in place of the number.
fn count(text: &mut impl Read, buffer: &mut [u8]) -> io::Result<Result<u64, String>> {
    let (mut lines, mut last) = (0, b'\n');
    loop {
        match text.read(buffer) {
            Ok(0) if last == b'\n' => return Ok(Ok(lines)),
            Ok(0) => return Ok(Err("its last line is torn".to_owned())),
            Ok(length) => {
                lines += memchr::memchr_iter(b'\n', &buffer[..length]).count() as u64;
                last = buffer[length - 1];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A file that keeps account of what was read of it.
struct Checksummed {
    file: File,
    bytes: u64,
    crc32c: u32,
}

impl Read for Checksummed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &buffer[..length]);
        self.bytes += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    fn contents(bytes: &[u8], how: Compression) -> Contents {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        // A small buffer, so that files are longer.
        let contents = read(file, how, &mut [0; 100]).unwrap();
        assert_eq!((contents.bytes, contents.crc32c), (bytes.len() as u64, crc32c::crc32c(bytes)));
        contents
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn lines_are_counted_through_every_compression() {
        let text = "{\"n\":1}\n".repeat(1000).into_bytes();
        assert_eq!(contents(&text, Compression::None).lines, Ok(1000));
        assert_eq!(contents(&[gzip(&text), gzip(b""), gzip(&text)].concat(), Compression::Gzip).lines, Ok(2000));
        assert_eq!(contents(&[zstd(&text), zstd(b""), zstd(&text)].concat(), Compression::Zstd).lines, Ok(2000));
        for how in [Compression::None, Compression::Gzip, Compression::Zstd] {
            assert_eq!(contents(b"", how).lines, Ok(0), "{how:?}");
        }
    }

    #[test]
    fn a_torn_end_is_told_and_the_checksum_is_of_the_whole_file() {
        let text = "{\"n\":1}\n".repeat(1000).into_bytes();
        assert_eq!(contents(b"a\nb", Compression::None).lines, Err("its last line is torn".to_owned()));
        for (how, whole) in [(Compression::Gzip, gzip(&text)), (Compression::Zstd, zstd(&text))] {
            let mut damaged = whole.clone();
            damaged[whole.len() / 2] ^= 0xff;
            for bytes in [&whole[..whole.len() - 3], &[&whole[..], b"more"].concat()[..], &damaged, b"plain\n"] {
                let lines = contents(bytes, how).lines;
                let told = lines.as_ref().is_err_and(|told| told.starts_with("cannot be decompressed: "));
                assert!(told, "{how:?}, {} bytes: {lines:?}", bytes.len());
            }
        }
    }
}
