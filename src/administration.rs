//! Administration of the program: its figures, templates, clusters and configuration. Clients are served by
//! [`Sessions`](crate::session::Sessions).

use std::{
    fs,
    io::{Read, Write},
};

pub use crate::{
    backend::footprint::PrivateBytes,
    template::{Exported, Imported, Summary},
};
use crate::{
    protocol::error_response::{ErrorResponse, sqlstate},
    session::{Choice, Outcome},
    template::Tools,
};
pub use cluster::{ClusterOrigin, ClusterSummary, DEFAULT_CLUSTER, Lifetime, MadeCluster, NewCluster, UnknownLifetime};
pub use figure::{Figure, Metric, MetricType, Unit};
pub use watched::{Spread, Watched, WatchedCluster};

mod cluster;
pub mod figure;
mod watched;

/// Administers the program; one object for the program.
pub trait Administration: Send + Sync + 'static {
    /// The figures of the clusters.
    fn figures(&self) -> Vec<Figure>;

    /// What is counted in the clusters. No cluster is disturbed.
    fn watched(&self) -> Watched;

    /// Whether clients get a session now.
    ///
    /// # Errors
    /// Why they do not.
    fn readiness(&self) -> Result<(), String>;

    /// The private memory of every connection that has its own cluster, by the connection's number.
    ///
    /// # Errors
    /// When `/proc/self/pagemap` cannot be read.
    fn memory(&self) -> Result<Vec<(u32, PrivateBytes)>, ErrorResponse>;

    /// The templates, by name.
    ///
    /// # Errors
    /// When they cannot be read.
    fn templates(&self) -> Result<Vec<Summary>, ErrorResponse>;

    /// Removes the template `name`; clones of it live on.
    ///
    /// # Errors
    /// When there is none, or it cannot be removed.
    fn drop_template(&self, name: &str) -> Result<(), ErrorResponse>;

    /// Writes the template `name` to `out`, from where [`Administration::import_template`] reads it.
    ///
    /// # Errors
    /// `42704` when there is none, `58030` when it is damaged, or `out` cannot be written.
    fn export_template(&self, name: &str, out: &mut dyn Write) -> Result<Exported, ErrorResponse>;

    /// Puts the template that `input` has into its place.
    ///
    /// # Errors
    /// `55000` when this program cannot use it, with what differs; `22023` when it is no template, `XX001` when it is
    /// damaged, `58030` when it cannot be read or put into the cache.
    fn import_template(&self, input: &mut dyn Read) -> Result<Imported, ErrorResponse>;

    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// `42710` when there is one of that name, `3D000` when its origin does not exist, others when it cannot be made.
    fn create_cluster(&self, new: NewCluster) -> Result<MadeCluster, ErrorResponse>;

    /// Puts the cluster `name` back to what it was when it was made. Its sessions end (`57P01`).
    ///
    /// # Errors
    /// `3D000` when there is none, `0A000` when it is not a copy of a template or a branch, in memory.
    fn reset_cluster(&self, name: &str) -> Result<(), ErrorResponse>;

    /// Ends the sessions of the cluster `name` (`57P01`), and the cluster. What it has in memory is gone; a directory of
    /// the host stays as it is, shut down.
    ///
    /// # Errors
    /// `3D000` when there is none, `55006` when it lives as long as the program.
    fn drop_cluster(&self, name: &str) -> Result<(), ErrorResponse>;

    /// Sets the clock of the cluster `cluster`, or seeds its random numbers, for all of its sessions.
    ///
    /// # Errors
    /// `3D000` when there is none, `42501` when the program was started without leave, `22008` for a time that a clock
    /// cannot be set to.
    fn choose(&self, cluster: &str, choice: Choice) -> Outcome;

    /// The clusters, by name, without those of single connections.
    fn clusters(&self) -> Vec<ClusterSummary>;

    /// What PostgreSQL's client programs are run with.
    ///
    /// # Errors
    /// When there is none.
    fn tools(&self) -> Result<Tools, ErrorResponse> {
        let message = "PostgreSQL's client programs cannot be run here";
        Err(ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, message))
    }

    /// Reloads the configuration files of the clusters, as a `SIGHUP` to a postmaster does, and looks again for
    /// extensions that are installed.
    fn reload(&self);
}

/// The figures of this process, as far as the operating system provides them.
#[must_use]
pub fn process_figures() -> Vec<Figure> {
    resident_memory().map(|memory| figure::RESIDENT_MEMORY.figure(memory)).into_iter().collect()
}

/// Resident memory of this process in bytes: the second number in Linux' `/proc/self/statm`, which counts pages.
fn resident_memory() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()?)
}
