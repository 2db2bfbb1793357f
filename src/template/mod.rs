//! Templates: clusters that were prepared and frozen, of which every connection in `isolated` mode gets a clone.
//!
//! * `initdb`: a new cluster
//! * `recipe`: what a template is made from
//! * `build`: from a cluster and a recipe to a backend that is booted and warm
//! * `snapshot`: a backend captured, and started again
//! * `shelf`: templates on disk
//! * `record`: small values in files
//! * `catalog`: the templates of one program, and those in use
//! * `pool`: clones that are kept ready

mod build;
mod catalog;
mod initdb;
mod pool;
mod recipe;
mod record;
mod shelf;
mod snapshot;

pub use catalog::Templates;
pub(crate) use catalog::{DEFAULT, Template, TemplateError};
pub use recipe::{Recipe, Script};
pub(crate) use shelf::Remakeable;
pub use shelf::{Shelf, Summary};
