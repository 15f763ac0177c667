//! From the two files to [`Settings`], with their texts and fingerprint, or every mistake.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use super::{Settings, read};
use crate::commentjson::{self, Place};

/// Settings that passed every check, and what they were read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The rules.
    pub settings: Settings,
    /// [`Sources::fingerprint`] of the texts.
    pub fingerprint: String,
    /// The texts of the files.
    pub sources: Sources,
}

/// The texts of the two files: what a block needs to be transformed once more exactly as before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `mthinkingdata:filter.<app_id>.json`
    pub filter: String,
    /// `mthinkingdata:metadata.<app_id>.json`
    pub metadata: String,
}

impl Sources {
    /// XXH3-128 of both texts, 32 hexadecimal digits. It is kept in the journal: it must never change.
    pub fn fingerprint(&self) -> String {
        // The length keeps text that moves from one file to the other from giving the same bytes.
        let mut bytes = (self.filter.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(self.filter.as_bytes());
        bytes.extend_from_slice(self.metadata.as_bytes());
        format!("{:032x}", xxh3_128(&bytes))
    }
}

/// Something that an operator must correct in a settings file. Shown as `file:line:column: message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file, as the caller named its directory.
    pub file: PathBuf,
    /// Where; `None` when the file could not be read at all.
    pub place: Option<Place>,
    /// What is wrong and what is expected.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(place) = self.place {
            write!(f, "{place}:")?;
        }
        write!(f, " {}", self.message)
    }
}

impl Settings {
    /// Reads both files of an app from the directory.
    ///
    /// Fails with every mistake of both files, in their order.
    pub fn load(dir: &Path, app_id: u64) -> Result<Loaded, Vec<Mistake>> {
        let [filter, metadata] =
            ["filter", "metadata"].map(|what| dir.join(format!("mthinkingdata:{what}.{app_id}.json")));
        let mut mistakes = Vec::new();
        let texts = [&filter, &metadata].map(|file| read_text(file).map_err(|mistake| mistakes.push(mistake)).ok());
        let parsed =
            parse(texts[0].as_deref().map(|text| (&*filter, text)), texts[1].as_deref().map(|text| (&*metadata, text)));
        match (parsed, texts) {
            (Ok(settings), [Some(filter), Some(metadata)]) => {
                let sources = Sources { filter, metadata };
                Ok(Loaded { settings, fingerprint: sources.fingerprint(), sources })
            }
            (parsed, _) => {
                mistakes.extend(parsed.err().unwrap_or_default());
                mistakes.sort_by(|a, b| (&a.file, a.place).cmp(&(&b.file, b.place)));
                Err(mistakes)
            }
        }
    }

    /// Reads settings from texts that were kept; mistakes call the files `filter` and `metadata`.
    pub fn parse(sources: &Sources) -> Result<Self, Vec<Mistake>> {
        parse(Some((Path::new("filter"), &sources.filter)), Some((Path::new("metadata"), &sources.metadata)))
    }
}

fn read_text(file: &Path) -> Result<String, Mistake> {
    let mistake = |place, message| Mistake { file: file.to_owned(), place, message };
    let bytes = fs::read(file).map_err(|error| {
        mistake(
            None,
            format!("cannot read this settings file: {error}; it must exist, see `settings` and `app_id` in mtga.yml"),
        )
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
        mistake(Some(Place::of(&valid, valid.len())), "this is no UTF-8, save the file in that encoding".to_owned())
    })
}

/// Checks the texts that are there; a missing one counts as empty.
fn parse(filter: Option<(&Path, &str)>, metadata: Option<(&Path, &str)>) -> Result<Settings, Vec<Mistake>> {
    let mut settings = Settings::default();
    let mut mistakes = Vec::new();
    if let Some((file, text)) = filter {
        settings.filter = checked(file, text, &mut mistakes, read::Reader::filter);
    }
    if let Some((file, text)) = metadata {
        settings.metadata = checked(file, text, &mut mistakes, read::Reader::metadata);
    }
    if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
}

fn checked<T: Default>(
    file: &Path,
    text: &str,
    mistakes: &mut Vec<Mistake>,
    read: fn(&mut read::Reader, &commentjson::Node) -> T,
) -> T {
    let mut reader = read::Reader::default();
    let value = match commentjson::parse(text) {
        Ok(node) => read(&mut reader, &node),
        Err(error) => {
            reader.mistakes.push((error.place, error.message));
            T::default()
        }
    };
    reader.mistakes.sort_by_key(|&(place, _)| place);
    mistakes.extend(reader.mistakes.into_iter().map(|(place, message)| Mistake {
        file: file.to_owned(),
        place: Some(place),
        message,
    }));
    value
}
