//! Figures about the program. All of them are defined here, with the properties that an exporter of metrics needs.

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of the objects that the figure's name names, such as connections.
    Count,
    /// Bytes.
    Bytes,
}

/// How a figure changes, in the terms of Prometheus and OpenTelemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricType {
    /// It only grows, from 0 at the program's start.
    Counter,
    /// It can grow and shrink.
    Gauge,
}

/// The definition of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, which is also its key in the reply to `stats`.
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// How it changes.
    pub metric_type: MetricType,
    /// Its meaning, in one sentence.
    pub help: &'static str,
}

/// The current value of a metric.
///
/// ```
/// use pglite_port::administration::{MetricType, Unit, figure};
///
/// let figure = figure::RESIDENT_MEMORY.figure(1 << 20);
/// assert_eq!((figure.metric.name, figure.value), ("memory", 1_048_576));
/// assert_eq!((figure.metric.unit, figure.metric.metric_type), (Unit::Bytes, MetricType::Gauge));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// The metric.
    pub metric: &'static Metric,
    /// Its value.
    pub value: u64,
}

impl Metric {
    const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Self { name, unit, metric_type: MetricType::Gauge, help }
    }

    const fn counter(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Self { name, unit, metric_type: MetricType::Counter, help }
    }

    /// A figure of this metric.
    #[must_use]
    pub const fn figure(&'static self, value: u64) -> Figure {
        Figure { metric: self, value }
    }
}

/// Connections that are open.
pub static CONNECTIONS: Metric = Metric::gauge("connections", Unit::Count, "Connections that are open.");

/// Connections that were opened since the program started.
pub static CONNECTIONS_OPENED: Metric =
    Metric::counter("connections_opened", Unit::Count, "Connections that were opened since the program started.");

/// Resident memory of the process.
pub static RESIDENT_MEMORY: Metric = Metric::gauge("memory", Unit::Bytes, "Resident memory of the process.");

/// What the linear memories and tables of sessions have grown by.
pub static LINEAR_MEMORY: Metric =
    Metric::gauge("linear_memory", Unit::Bytes, "What the memories of sessions have grown by since they began.");

/// Files of clusters in memory, without what they share with templates.
pub static FILES_IN_MEMORY: Metric =
    Metric::gauge("files_in_memory", Unit::Bytes, "Files in memory that clusters do not share with their templates.");

/// Memory that the processes of clusters share.
pub static SHARED_MEMORY: Metric =
    Metric::gauge("shared_memory", Unit::Bytes, "Memory that the sessions of one cluster share with each other.");

/// The images in memory that processes of clusters begin with.
pub static IMAGES: Metric =
    Metric::gauge("images", Unit::Bytes, "Images in memory that the processes of clusters begin with.");

/// What counts against [`MEMORY_LIMIT`].
pub static MEMORY_USED: Metric =
    Metric::gauge("memory_used", Unit::Bytes, "Memory of the program that counts against its limit.");

/// The limit of the program's memory; without one, there is no such figure.
pub static MEMORY_LIMIT: Metric = Metric::gauge("memory_limit", Unit::Bytes, "The limit of the program's memory.");

/// Clusters that run, without those of isolated connections.
pub static CLUSTERS: Metric =
    Metric::gauge("clusters", Unit::Count, "Clusters that run, without those of isolated connections.");

/// Sessions of clients in these clusters.
pub static SHARED_SESSIONS: Metric =
    Metric::gauge("shared_sessions", Unit::Count, "Sessions of clients in clusters that take several.");

/// Whether clients get a session.
pub static READY: Metric = Metric::gauge("ready", Unit::Count, "1 if clients get a session, else 0.");

/// Turns that have begun, in all clusters since the program started.
pub static TURNS: Metric =
    Metric::counter("turns", Unit::Count, "Turns of processes that have begun since the program started.");

/// Bytes of frames that wait until the parent reads them.
pub static QUEUED_FRAMES: Metric =
    Metric::gauge("queued_frames", Unit::Bytes, "Bytes of frames, log lines included, that the parent has not read.");

/// Clones that are ready to be taken.
pub static WARM_CLONES: Metric = Metric::gauge("warm", Unit::Count, "Clones of templates that are ready to be taken.");

/// The sum of the linear memory that isolated connections do not share.
pub static PRIVATE_MEMORY: Metric =
    Metric::gauge("private_memory", Unit::Bytes, "Linear memory that isolated connections share with no other.");

/// The sum of the parts of files that isolated connections do not share.
pub static PRIVATE_FILES: Metric =
    Metric::gauge("private_files", Unit::Bytes, "Parts of files that isolated connections share with no other.");

/// The sum of [`PRIVATE_MEMORY`] and [`PRIVATE_FILES`].
pub static PRIVATE: Metric =
    Metric::gauge("private", Unit::Bytes, "Memory and files that isolated connections share with no other.");
