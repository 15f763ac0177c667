//! Directories that are there after a power cut: making one is not enough, its name has to be synced in the directory above.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// Makes a directory, and those above it that are missing, with mode 0750 less the umask; returns those that were made,
/// outermost first. The name of the directory is durable then whether or not it was there: whoever made it may have been
/// killed before it was synced.
///
/// # Errors
/// I/O errors. A directory that was there, below one that may not be read, is taken as it is.
pub fn create_dirs(path: &Path) -> io::Result<Vec<PathBuf>> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let create = || DirBuilder::new().mode(0o750).create(path);
    let mut made = Vec::new();
    let created = match create() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            made = create_dirs(above.ok_or(error)?)?;
            create()
        }
        done => done,
    };
    match created {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match sync_dir(above) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        },
        created => {
            created?;
            if let Err(error) = sync_dir(above) {
                // Found there, it would seem durable the next time: what a failed sync lost, another one need not bring.
                fs::remove_dir(path).ok();
                return Err(error);
            }
            made.push(path.to_owned());
        }
    }
    Ok(made)
}

/// The same for a directory with records in it, which are nobody else's: it gets mode 0700, whatever the umask and whoever
/// made it, and so everything in it is private.
///
/// # Errors
/// I/O errors. A directory of another user keeps its mode.
pub fn create_private_dirs(path: &Path) -> io::Result<()> {
    create_dirs(path)?;
    let metadata = fs::metadata(path)?;
    let user = geteuid();
    if metadata.permissions().mode() & 0o7777 == 0o700 || !user.is_root() && metadata.uid() != user.as_raw() {
        return Ok(());
    }
    match fs::set_permissions(path, Permissions::from_mode(0o700)) {
        // What cannot be written has its mode from before.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        set => set,
    }
}

fn sync_dir(path: Option<&Path>) -> io::Result<()> {
    File::open(path.unwrap_or(Path::new(".")))?.sync_all()
}
