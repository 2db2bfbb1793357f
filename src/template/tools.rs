//! What PostgreSQL's client programs are run with.

use std::sync::Arc;

use crate::{backend::program::Program, engine::artefact::Artefact};

/// What it takes to run PostgreSQL's client programs as guests. They are compiled when they are first used.
#[derive(Clone)]
pub struct Tools {
    pub(crate) program: Arc<Program>,
    pub(crate) artefact: Artefact,
}
