//! Clusters by name: what a new one is made from and where it is kept, and what is known of those there are.

use std::{fmt, path::PathBuf, str::FromStr, time::SystemTime};

use crate::quota::Limits;

/// The name of the cluster that connections get which name none.
pub const DEFAULT_CLUSTER: &str = "default";

/// What a new cluster is made with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewCluster {
    /// Its name; without one, the program chooses one that is free.
    pub name: Option<String>,
    /// What is in it.
    pub origin: ClusterOrigin,
    /// The directory of the host that it is kept in; without, it is in memory. If there is a cluster in it, that one is
    /// started instead of a new one; a branch is refused then.
    pub data_directory: Option<PathBuf>,
    /// How long it exists.
    pub lifetime: Lifetime,
    /// Its limits. Without one, a branch has that of its origin, and a copy of a template that of the template; all others
    /// have those of the program's clusters.
    pub limits: Limits,
    /// Settings of `PostgreSQL`, by their names (`postgresql.conf`), after those of the program's clusters.
    pub settings: Vec<(String, String)>,
}

/// What is in a new cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClusterOrigin {
    /// The databases of a new cluster: `postgres`, `template0` and `template1`.
    #[default]
    Empty,
    /// What is in this template.
    Template(String),
    /// What is committed in the cluster of this name at that moment.
    Branch(String),
}

/// How long a cluster exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as the program; it cannot be dropped.
    Program,
    /// Until it is dropped, or the program ends.
    #[default]
    Dropped,
    /// Until its last connection has closed, or it is dropped. It waits for its first connection.
    Connections,
}

/// A text that names no [`Lifetime`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown lifetime {0:?}: use program, dropped or connections")]
pub struct UnknownLifetime(String);

/// The texts of lifetimes.
const LIFETIMES: [(&str, Lifetime); 3] =
    [("program", Lifetime::Program), ("dropped", Lifetime::Dropped), ("connections", Lifetime::Connections)];

impl FromStr for Lifetime {
    type Err = UnknownLifetime;

    /// ```
    /// use pglite_port::administration::Lifetime;
    /// for text in ["program", "dropped", "connections"] {
    ///     assert_eq!(text.parse::<Lifetime>().unwrap().to_string(), text);
    /// }
    /// assert!("forever".parse::<Lifetime>().is_err());
    /// ```
    fn from_str(text: &str) -> Result<Self, UnknownLifetime> {
        let found = LIFETIMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, lifetime)| *lifetime).ok_or_else(|| UnknownLifetime(text.to_owned()))
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = LIFETIMES.iter().find(|(_, lifetime)| lifetime == self).map_or("", |(name, _)| name);
        f.write_str(text)
    }
}

impl fmt::Display for ClusterOrigin {
    /// ```
    /// use pglite_port::administration::ClusterOrigin;
    /// assert_eq!(ClusterOrigin::Empty.to_string(), "empty");
    /// assert_eq!(ClusterOrigin::Template("shop".into()).to_string(), "template shop");
    /// assert_eq!(ClusterOrigin::Branch("default".into()).to_string(), "branch of default");
    /// ```
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty"),
            Self::Template(name) => write!(f, "template {name}"),
            Self::Branch(name) => write!(f, "branch of {name}"),
        }
    }
}

/// A cluster that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeCluster {
    /// Its name.
    pub name: String,
    /// The database in it that its origin was made for: the template's, or `postgres`.
    pub database: String,
}

/// A cluster as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSummary {
    /// Its name.
    pub name: String,
    /// What was in it when it was made.
    pub origin: ClusterOrigin,
    /// The directory of the host that it is kept in; without, it is in memory.
    pub data_directory: Option<PathBuf>,
    /// How long it exists.
    pub lifetime: Lifetime,
    /// The connections that have a session in it, or wait for one.
    pub connections: usize,
    /// When it was made.
    pub made: SystemTime,
    /// The bytes of memory that it uses, as [`Limits::memory`] counts them.
    pub memory: u64,
    /// The bytes of its files, as [`Limits::disk`] counts them.
    pub disk: u64,
    /// Its limits.
    pub limits: Limits,
}
