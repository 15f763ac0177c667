//! Opening files of a home that must be regular files under their own names.
//!
//! **Promise.** No link is followed and nothing is waited for: a FIFO that lies in place of a file would keep whoever opens
//! it, for ever. Directories above the file may be links. Where they must not be, [`find_other`] looks at a whole directory
//! before anything in it is opened; an entry that is replaced after that look is not seen.
//!
//! **How it fails.** A link gives `ELOOP`, anything else that is no regular file [`io::ErrorKind::InvalidInput`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// Opens a file for reading.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), path)
}

/// Opens a file in this way. The flags of the options are replaced.
pub fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let other = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no regular file", path.display()));
    let file = match options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path) {
        // A FIFO that nobody reads, opened for writing, or a socket.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => return Err(other()),
        file => file?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(other()) }
}

/// Reads a whole file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let mut bytes = Vec::with_capacity(file.metadata().map_or(0, |metadata| metadata.len() as usize));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a whole file of text.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Looks for whatever is neither a file nor a directory: `path` itself, or anything below it. The first one found, with what it
/// is. There is none where there is nothing.
pub fn find_other(path: &Path) -> io::Result<Option<(PathBuf, &'static str)>> {
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?.file_type(),
    };
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            if let Some(found) = find_other(&entry?.path())? {
                return Ok(Some(found));
            }
        }
    }
    let what = match kind {
        kind if kind.is_file() || kind.is_dir() => return Ok(None),
        kind if kind.is_symlink() => "link",
        kind if kind.is_fifo() => "named pipe",
        kind if kind.is_socket() => "socket",
        _ => "device",
    };
    Ok(Some((path.to_owned(), what)))
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn links_and_fifos_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, fifo) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("fifo"));
        fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(read(&file).unwrap(), b"text");
        assert_eq!(read_to_string(&file).unwrap(), "text");
        assert_eq!(read(&link).unwrap_err().raw_os_error(), Some(nix::libc::ELOOP));
        for path in [&fifo, dir.path()] {
            assert_eq!(read(path).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        let mut append = OpenOptions::new();
        assert_eq!(open_with(append.append(true), &fifo).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(open_with(append.append(true), &link).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"text");
    }

    #[test]
    fn what_is_no_file_is_found_however_deep_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let (deep, link) = (dir.path().join("a/b"), dir.path().join("a/link"));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "text").unwrap();
        assert_eq!(find_other(dir.path()).unwrap(), None);
        assert_eq!(find_other(&dir.path().join("none")).unwrap(), None);
        // A link that leads nowhere, or to a directory beside it, is one too.
        for to in ["none", "b"] {
            std::os::unix::fs::symlink(to, &link).unwrap();
            for place in [dir.path(), &link] {
                assert_eq!(find_other(place).unwrap(), Some((link.clone(), "link")));
            }
            fs::remove_file(&link).unwrap();
        }
        let fifo = deep.join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(find_other(dir.path()).unwrap(), Some((fifo, "named pipe")));
    }
}
