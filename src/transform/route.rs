//! What becomes of the logs of one name: the settings, worked out for it once.
//!
//! A [`Route`] holds the filter's verdict, the mapping's keys in the order of the line with all their constant text ready,
//! and the members of `logs` that must be noted on the way, each with its slot. [`Routes`] keeps them by the raw bytes of
//! the log name in a bounded table, since a topic has few log names; a name that pushes another out costs time only.

use xxhash_rust::xxh3::xxh3_64;

use super::check;
use super::members::{Role, Shape};
use super::plan::Plan;
use super::{Options, text};
use crate::settings::{Key, Mapping, Part, Pattern, Settings, Template};

/// What the filter says of a log name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Drop,
}

/// The part that a `#` key plays in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    Account,
    Distinct,
    EventName,
    Ip,
    Time,
    Type,
    Uuid,
    /// Mapped by the settings and none of the others: left out when empty.
    Extra,
}

impl Duty {
    /// The keys that every line has room for, mapped or not.
    const STANDARD: [(&'static str, Self); 7] = [
        ("#account_id", Self::Account),
        ("#distinct_id", Self::Distinct),
        ("#event_name", Self::EventName),
        ("#ip", Self::Ip),
        ("#time", Self::Time),
        ("#type", Self::Type),
        ("#uuid", Self::Uuid),
    ];

    /// What the standard checks say of a value that is not empty, or of an event name or type.
    pub(super) fn judge(self, text: &str) -> check::Verdict {
        match self {
            Self::Account | Self::Distinct => check::Verdict::of_id(text),
            Self::EventName => check::Verdict::of_name(text),
            Self::Type => check::Verdict::of_type(text),
            Self::Ip | Self::Time | Self::Uuid | Self::Extra => check::Verdict::Good,
        }
    }
}

/// One `#` key of the line.
#[derive(Debug)]
pub(super) struct OutKey {
    pub(super) duty: Duty,
    /// The text between the value before and the value of this key: `","#ip":"`.
    pub(super) prefix: Box<[u8]>,
    /// Tried in turn; the first that gives text is the value.
    pub(super) sources: Vec<Source>,
}

/// Where a value can come from.
#[derive(Debug)]
pub(super) enum Source {
    /// The member of `logs` in this slot.
    Member(usize),
    /// A template.
    Template(Compiled),
}

/// A template for one log name.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) pieces: Vec<Piece>,
    /// What it gives when `logs` has none of the members that it names.
    pub(super) fixed: Fixed,
}

/// A part of a template.
#[derive(Debug)]
pub(super) enum Piece {
    Text(String),
    /// The member in the slot, else the text.
    Member(usize, String),
}

/// Text that was looked at ahead of time.
#[derive(Debug)]
pub(super) struct Fixed {
    pub(super) text: String,
    /// The text, escaped for JSON.
    pub(super) json: Vec<u8>,
    /// What the standard checks say of it, in the duty of its key.
    pub(super) verdict: check::Verdict,
}

impl Fixed {
    fn new(text: String, duty: Duty) -> Self {
        let mut json = Vec::with_capacity(text.len());
        text::escape(&text, &mut json);
        Self { verdict: duty.judge(&text), text, json }
    }
}

/// What the members of `logs` are to a route.
#[derive(Debug)]
pub(super) struct Roles {
    /// Members that are noted, `wanted[i]` in slot `i + 1`.
    wanted: Vec<String>,
    /// Properties that are left out.
    omit: Vec<String>,
}

impl Roles {
    /// The slot of a member, a new one when it has none yet.
    fn slot(&mut self, name: &str) -> usize {
        let found = self.wanted.iter().position(|wanted| wanted == name);
        found.unwrap_or_else(|| {
            self.wanted.push(name.to_owned());
            self.wanted.len() - 1
        }) + 1
    }

    /// How many slots the members need.
    pub(super) fn slots(&self) -> usize {
        self.wanted.len() + 1
    }

    pub(super) fn of(&self, name: &str) -> Role {
        let found = self.wanted.iter().position(|wanted| wanted == name);
        Role { slot: found.map_or(Role::UNWANTED, |index| index as u32 + 1), omit: self.omits(name) }
    }

    pub(super) fn omits(&self, name: &str) -> bool {
        self.omit.iter().any(|omitted| omitted == name)
    }
}

/// The settings, worked out for one log name.
#[derive(Debug)]
pub(super) struct Route {
    /// The log name as it stands in the record, between its quotes.
    raw: Box<[u8]>,
    pub(super) log_name: String,
    pub(super) verdict: Verdict,
    pub(super) keys: Vec<OutKey>,
    /// Which of the keys is `#time`.
    pub(super) time: usize,
    /// Which of the keys is `#type`.
    pub(super) event_type: usize,
    pub(super) roles: Roles,
    /// The members that records of this name had lately.
    pub(super) shape: Shape,
    /// How lines of the usual patterns are put together.
    pub(super) plans: Vec<Plan>,
}

impl Route {
    fn new(settings: &Settings, options: &Options, raw: &str) -> Self {
        let mut log_name = String::new();
        text::decode(raw, &mut log_name);
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(&log_name));
        let filter = &settings.filter;
        let passes = !any(&filter.drop) && filter.keep.as_deref().is_none_or(any);
        let omit = filter.omit.iter().filter(|(pattern, _)| pattern.matches(&log_name));
        let mut route = Self {
            raw: raw.as_bytes().into(),
            verdict: if passes { Verdict::Pass } else { Verdict::Drop },
            keys: Vec::new(),
            time: 0,
            event_type: 0,
            roles: Roles { wanted: Vec::new(), omit: omit.flat_map(|(_, names)| names.iter().cloned()).collect() },
            shape: Shape::default(),
            plans: Vec::new(),
            log_name,
        };
        let named = |name: &str| settings.metadata.iter().find(|mapping| mapping.log_name == name);
        match named(&route.log_name).or_else(|| named("*")) {
            Some(mapping) => route.compile(mapping, options),
            None => route.compile(&default_mapping(), options),
        }
        route
    }

    fn compile(&mut self, mapping: &Mapping, options: &Options) {
        let app_id = options.app_id;
        let extra = mapping.keys.iter().map(|key| (key.name.as_str(), Duty::Extra));
        let mut names: Vec<(&str, Duty)> = Duty::STANDARD.into_iter().chain(extra).collect();
        // Standard names stand first, the sort is stable, and of equal names the first is kept: so it keeps its duty.
        names.sort_by_key(|(name, _)| *name);
        names.dedup_by_key(|(name, _)| *name);
        for (name, duty) in names {
            let mut sources = Vec::new();
            if let Some(Key { field, default, .. }) = mapping.keys.iter().find(|key| key.name == name) {
                sources.extend(field.as_deref().map(|field| Source::Member(self.roles.slot(field))));
                sources.extend(self.template(default, duty, app_id));
            }
            match duty {
                Duty::Time => self.time = self.keys.len(),
                Duty::EventName => sources.extend(self.template(&mapping.event_name, duty, app_id)),
                Duty::Type => {
                    self.event_type = self.keys.len();
                    sources.extend(self.template(&literal(&mapping.event_type), duty, app_id));
                }
                _ => {}
            }
            if duty == Duty::Uuid && sources.is_empty() && !options.uuid {
                continue;
            }
            let mut prefix = b"\",\"".to_vec();
            text::escape(name, &mut prefix);
            prefix.extend_from_slice(b"\":\"");
            self.keys.push(OutKey { duty, prefix: prefix.into(), sources });
        }
    }

    fn template(&mut self, template: &Template, duty: Duty, app_id: u64) -> Option<Source> {
        let pieces: Vec<_> = template
            .0
            .iter()
            .map(|part| match part {
                Part::Text(text) => Piece::Text(text.clone()),
                Part::Member(name) => {
                    let otherwise = match name.as_str() {
                        "log_name" => self.log_name.clone(),
                        "app_id" => app_id.to_string(),
                        _ => String::new(),
                    };
                    Piece::Member(self.roles.slot(name), otherwise)
                }
            })
            .collect();
        let fixed = pieces.iter().map(|piece| match piece {
            Piece::Text(text) | Piece::Member(_, text) => text.as_str(),
        });
        let fixed = Fixed::new(fixed.collect(), duty);
        (!pieces.is_empty()).then_some(Source::Template(Compiled { pieces, fixed }))
    }
}

fn literal(text: &str) -> Template {
    Template(vec![Part::Text(text.to_owned())])
}

/// The mapping of a log name that the settings do not mention.
fn default_mapping() -> Mapping {
    let key = |(name, field): (&str, &str)| Key {
        name: name.to_owned(),
        field: Some(field.to_owned()),
        default: Template::default(),
    };
    let keys = [("#account_id", "role_id"), ("#distinct_id", "distinct_id"), ("#ip", "ip"), ("#time", "mtime")];
    Mapping {
        log_name: "*".to_owned(),
        event_name: Template(vec![Part::Text("t_".to_owned()), Part::Member("log_name".to_owned())]),
        event_type: "track".to_owned(),
        keys: keys.into_iter().map(key).collect(),
    }
}

/// The routes of the log names seen lately: a hash table of fixed size in which a name has a few places.
#[derive(Debug)]
pub(super) struct Routes(Vec<Option<Box<Route>>>);

impl Routes {
    const PLACES: usize = 8;
    const SETS: usize = 128;
    /// Longer names are no log names; they share the last place and are worked out each time.
    const LONGEST: usize = 256;

    pub(super) fn clear(&mut self) {
        self.0.fill_with(|| None);
    }

    /// Forgets the name that is too long to be a log's.
    pub(super) fn forget_long(&mut self) {
        self.0[Self::SETS * Self::PLACES] = None;
    }

    pub(super) fn at(&self, index: usize) -> Option<&Route> {
        self.0.get(index)?.as_deref()
    }

    pub(super) fn at_mut(&mut self, index: usize) -> Option<&mut Route> {
        self.0.get_mut(index)?.as_deref_mut()
    }

    /// Where the route of a log name is, which is given as it stands between its quotes.
    pub(super) fn find(&mut self, settings: &Settings, options: &Options, raw: &str) -> usize {
        let hash = xxh3_64(raw.as_bytes()) as usize;
        let (first, places) = if raw.len() > Self::LONGEST {
            (Self::SETS * Self::PLACES, 1)
        } else {
            (hash % Self::SETS * Self::PLACES, Self::PLACES)
        };
        for index in first..first + places {
            match &self.0[index] {
                Some(route) if *route.raw == *raw.as_bytes() => return index,
                Some(_) => {}
                None => return self.put(index, Route::new(settings, options, raw)),
            }
        }
        self.put(first + (hash >> 32) % places, Route::new(settings, options, raw))
    }

    fn put(&mut self, index: usize, route: Route) -> usize {
        self.0[index] = Some(Box::new(route));
        index
    }
}

impl Default for Routes {
    fn default() -> Self {
        let mut places = Vec::new();
        places.resize_with(Self::SETS * Self::PLACES + 1, || None);
        Self(places)
    }
}
