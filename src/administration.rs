//! Administration of the program: its figures, templates and configuration. Clients are served by
//! [`Sessions`](crate::session::Sessions).

use std::fs;

use crate::protocol::error_response::ErrorResponse;
pub use crate::{backend::footprint::PrivateBytes, template::Summary};
pub use figure::{Figure, Metric, MetricType, Unit};

pub mod figure;

/// Administers the program; one object for the program.
pub trait Administration: Send + Sync + 'static {
    /// The figures of the clusters.
    fn figures(&self) -> Vec<Figure>;

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

    /// Reloads the configuration files of the clusters, as a `SIGHUP` to a postmaster does.
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
