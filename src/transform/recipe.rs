//! Recipes: everything that decides what line a record becomes.
//!
//! A line depends on its record and its recipe alone. Each block in the journal names the recipe that made it, and every
//! recipe is on the disk before its first block: so a block whose lines a crash cut short is made again exactly as it
//! was, whatever settings and configuration are in force by then.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::{Options, Transform};
use crate::config::{Compression, Payload, Sink, Validation, Visibility};
use crate::durable::create_private_dirs;
use crate::fault::point;
use crate::msink::name::{Fields, NameTemplate};
use crate::msource::properties;
use crate::regular;
use crate::settings::{Settings, Sources};
use crate::zone;

/// Version of the transform: raised when the same record and settings give another line than before. Recipes of earlier
/// versions are still made ready, with the rules of then: 2 takes a byte order mark before the JSON.
const TRANSFORM: u32 = 2;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Version of the transform.
    pub transform: u32,
    /// The app whose records are taken.
    pub app_id: u64,
    /// How much is checked.
    pub validation: Validation,
    /// Whether events carry a `#uuid`.
    pub uuid: bool,
    /// Zone of `#time` and of file names, with its rules.
    #[serde(flatten)]
    pub zone: zone::Kept,
    /// Codec of the values.
    pub payload: Payload,
    /// Bound on a decompressed value, bytes.
    pub payload_limit: usize,
    /// Template of file names: decides which lines go together.
    pub file: String,
    /// Of `{instance}` in it.
    pub instance: String,
    /// Text of the filter settings.
    pub filter: String,
    /// Text of the metadata settings.
    pub metadata: String,
    /// Whether records of aborted transactions are taken too. Earlier versions kept no word of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_uncommitted: bool,
}

/// Why a recipe is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// It cannot be read.
    #[error("cannot read the kept recipe {0}")]
    Read(String, #[source] io::Error),
    /// It does not parse.
    #[error("the kept recipe is damaged: {0}")]
    Damaged(String),
    /// It was made for another version of the transform.
    #[error("the kept recipe is for version {0} of the transform, this program has version {TRANSFORM}")]
    OtherTransform(u32),
}

impl Recipe {
    /// The recipe of a configuration with these settings.
    pub fn new(config: &crate::config::Config, instance: &str, settings: Sources) -> Self {
        Self {
            transform: TRANSFORM,
            app_id: config.app_id,
            validation: config.validation,
            uuid: config.uuid,
            zone: config.time_zone.kept(),
            payload: config.kafka.payload,
            payload_limit: usize::try_from(config.memory / 4).unwrap_or(usize::MAX),
            file: config.sink.file.clone(),
            instance: instance.to_owned(),
            filter: settings.filter,
            metadata: settings.metadata,
            read_uncommitted: !properties::committed_only(&config.kafka),
        }
    }

    fn text(&self) -> io::Result<(String, String)> {
        let text = serde_json::to_string_pretty(self)?;
        let fingerprint = format!("{:032x}", xxh3_128(text.as_bytes()));
        Ok((text, fingerprint))
    }

    /// Its name.
    pub fn fingerprint(&self) -> io::Result<String> {
        Ok(self.text()?.1)
    }

    /// Keeps it in the directory, durably, under its fingerprint; returns that.
    pub fn keep(&self, dir: &Path) -> io::Result<String> {
        let (text, fingerprint) = self.text()?;
        let path = dir.join(format!("{fingerprint}.json"));
        create_private_dirs(dir)?;
        let is_new = !path.try_exists()?;
        if is_new {
            let new = path.with_extension("new");
            let mut file =
                regular::open_with(File::options().write(true).create(true).truncate(true).mode(0o600), &new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
        }
        point("recipe.unnamed");
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        if synced.is_err() && is_new {
            // Found there, it would be taken for durable the next time.
            fs::remove_file(&path).ok();
        }
        synced.map(|()| fingerprint)
    }

    /// Reads a kept recipe.
    pub fn load(dir: &Path, fingerprint: &str) -> Result<Self, RecipeError> {
        let path = dir.join(format!("{fingerprint}.json"));
        let text =
            regular::read_to_string(&path).map_err(|error| RecipeError::Read(path.display().to_string(), error))?;
        let recipe: Self = serde_json::from_str(&text).map_err(|error| RecipeError::Damaged(error.to_string()))?;
        if (1..=TRANSFORM).contains(&recipe.transform) {
            Ok(recipe)
        } else {
            Err(RecipeError::OtherTransform(recipe.transform))
        }
    }

    /// Removes recipes that nothing needs: all but those that `needed` says yes to, by fingerprint.
    pub fn prune(dir: &Path, needed: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let extension = path.extension().unwrap_or_default();
            let fingerprint = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            // What a kill left half-written is not needed either.
            if extension == "new" || (extension == "json" && !needed(fingerprint)) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Makes it ready for work, for live files without compression.
    pub fn engine(&self, fingerprint: &str) -> Result<Engine, RecipeError> {
        let sources = Sources { filter: self.filter.clone(), metadata: self.metadata.clone() };
        let settings = Settings::parse(&sources).map_err(|mistakes| {
            RecipeError::Damaged(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        })?;
        let time_zone = self.zone.zone().map_err(RecipeError::Damaged)?;
        let template = NameTemplate::parse(&self.file, self.app_id, &self.instance, time_zone);
        let template = template.map_err(RecipeError::Damaged)?;
        let options = Options { app_id: self.app_id, validation: self.validation, uuid: self.uuid, time_zone };
        Ok(Engine {
            recipe: self.clone(),
            fingerprint: fingerprint.into(),
            transform: match self.transform {
                1 => Transform::new(&settings, options).of_version_1(),
                _ => Transform::new(&settings, options),
            },
            payload: self.payload,
            payload_limit: self.payload_limit,
            fields: template.fields(),
            template,
            visibility: Visibility::Live,
            compression: Compression::None,
        })
    }
}

/// A recipe made ready for work; shared by all workers.
pub struct Engine {
    /// What it was made of.
    pub recipe: Recipe,
    /// The recipe's fingerprint.
    pub fingerprint: Arc<str>,
    /// Record to line.
    pub transform: Transform,
    /// Codec of the values.
    pub payload: Payload,
    /// Bound on a decompressed value, bytes.
    pub payload_limit: usize,
    /// What of a record decides its file.
    pub fields: Fields,
    /// File names.
    pub template: NameTemplate,
    /// Whether files are hidden until complete, which no file of several partitions can be. Not of the recipe: such blocks are
    /// never made again.
    pub visibility: Visibility,
    /// Compression of hidden files.
    pub compression: Compression,
}

impl Engine {
    /// The same for the files that are configured.
    #[must_use]
    pub fn for_sink(mut self, sink: &Sink) -> Self {
        (self.visibility, self.compression) = (sink.visibility, sink.compression);
        if self.visibility == Visibility::Sealed {
            self.template = self.template.hidden(sink.compression.suffix());
        }
        self
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 1 of the transform kept it, and under which name.
    const EARLIER: (&str, &str) =
        (include_str!("../../tests/fixtures/recipe-v1.json"), "07878587389cc128fced6b6837efdbd8");

    #[test]
    fn a_recipe_that_an_earlier_version_kept_is_read_and_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(EARLIER.1).with_extension("json"), EARLIER.0).unwrap();
        let recipe = Recipe::load(dir.path(), EARLIER.1).unwrap();
        assert_eq!(recipe.text().unwrap(), (EARLIER.0.to_owned(), EARLIER.1.to_owned()));
        recipe.engine(EARLIER.1).unwrap();
    }

    #[test]
    fn a_kept_recipe_has_the_rules_of_its_time_zone() {
        let dir = tempfile::tempdir().unwrap();
        let zone = zone::TimeZone::built_in("Europe/Berlin").unwrap().kept();
        let recipe = Recipe { zone, ..serde_json::from_str(EARLIER.0).unwrap() };
        let fingerprint = recipe.keep(dir.path()).unwrap();
        assert_eq!(Recipe::load(dir.path(), &fingerprint).unwrap(), recipe);
        let text = fs::read_to_string(dir.path().join(fingerprint).with_extension("json")).unwrap();
        assert!(text.contains(r#""zone_rules": "545a6966"#), "{text}");
    }
}
