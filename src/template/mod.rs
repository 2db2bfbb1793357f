//! Templates: clusters that were prepared and frozen, of which every connection in `isolated` mode gets a clone.
//!
//! * `initdb`: a new cluster
//! * `recipe`: what a template is made from
//! * `build`: from a cluster and a recipe to a backend that is booted and warm
//! * `snapshot`: a backend captured, and started again
//! * `shelf`: templates on disk
//! * `record`: small values in files
//! * `store`: the templates of one program, and those in use
//! * `pool`: clones that are kept ready

mod build;
mod initdb;
mod pool;
mod recipe;
mod record;
mod shelf;
mod snapshot;
mod store;

pub use recipe::{Recipe, Script};
pub(crate) use shelf::Remakeable;
pub use shelf::{Shelf, Summary};
pub use store::Templates;
pub(crate) use store::{DEFAULT, Template, TemplateError};
