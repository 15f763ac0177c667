//! Compression of single values, as some producers do it on top of Kafka's own.

use std::io::Write as _;

/// How a value is wrapped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wrapping {
    SnappyRaw,
    SnappyFramed,
    Gzip,
    Zstd,
    Lz4,
}

impl Wrapping {
    /// The wrapped value.
    pub(crate) fn wrap(self, value: &[u8]) -> Vec<u8> {
        match self {
            Self::SnappyRaw => snap::raw::Encoder::new().compress_vec(value).expect("snappy"),
            Self::SnappyFramed => {
                let mut encoder = snap::write::FrameEncoder::new(Vec::new());
                encoder.write_all(value).expect("snappy");
                encoder.into_inner().expect("snappy")
            }
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(value).expect("gzip");
                encoder.finish().expect("gzip")
            }
            Self::Zstd => zstd::encode_all(value, 1).expect("zstd"),
            Self::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                encoder.write_all(value).expect("lz4");
                encoder.finish().expect("lz4")
            }
        }
    }
}
