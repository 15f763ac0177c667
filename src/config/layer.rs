//! The layers that a value can come from, and where exactly in one a value or a mistake stands.

/// Where a value comes from; a later one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Layer {
    BuiltIn,
    /// `msource.yml`
    Msource,
    /// `mtga.yml`
    Mtga,
    /// `mtga.local.yml`
    Local,
    Environment,
    CommandLine,
}

impl Layer {
    /// Whether `${NAME}` is replaced in its values. Variables and flags were written by a shell, which did that.
    pub(super) const fn refers_to_environment(self) -> bool {
        !matches!(self, Self::Environment | Self::CommandLine)
    }
}

/// Where exactly a value, or a mistake, stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    pub(super) layer: Layer,
    /// From 1, in files.
    pub(super) line: Option<usize>,
    /// The key as it was written there: a path, or a variable's name. Empty for what concerns a whole file.
    pub(super) key: String,
}

/// A mistake before its file has a name.
pub(super) type Fault = (Origin, String);
