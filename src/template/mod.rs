//! Templates: clusters that were prepared and frozen, of which every connection in `isolated` mode gets a clone.
//!
//! * `console`: a guest's terminal as log lines
//! * `initdb`: a new cluster
//! * `build`: a template from a cluster and SQL
//! * `snapshot`: a backend captured, and started again
//! * `store`: templates on disk, and those in use

mod build;
mod console;
mod initdb;
mod snapshot;
mod store;

pub(crate) use build::Recipe;
pub(crate) use console::LineConsole;
pub(crate) use store::{TemplateError, Templates};
