//! Templates: clusters that were prepared and frozen, of which every connection in `isolated` mode gets a clone.
//!
//! * `initdb`: a new cluster
//! * `recipe`: the database, the user and the SQL that a template is built from
//! * `build`: builds a template from a cluster and a recipe
//! * `snapshot`: captures a backend, and starts others from the captured state
//! * `shelf`: templates on disk
//! * `record`: small values in files
//! * `parcel`: a template as one file, `travel`: exporting and importing it
//! * `catalog`: the templates of one program, and those in use
//! * `pool`: clones that are kept ready
//! * `tools`: what PostgreSQL's client programs are run with

mod build;
mod catalog;
mod initdb;
mod parcel;
mod pool;
mod recipe;
mod record;
mod shelf;
mod snapshot;
mod tools;
mod travel;

pub use catalog::Templates;
pub(crate) use catalog::{DEFAULT, Template, TemplateError};
pub use parcel::ParcelError;
pub(crate) use recipe::quote_identifier;
pub use recipe::{Recipe, Script};
pub(crate) use shelf::Remakeable;
pub use shelf::{Shelf, Summary};
pub use tools::Tools;
pub use travel::{Exported, Imported};
