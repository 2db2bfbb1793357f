//! Extensions beyond those of contrib: packages that are installed beside PGlite, and bundles of the user's own.
//!
//! Their files are added to the trees of all clusters and are never stored with them (`fs/added.rs`). So what is
//! installed now is what every cluster has, however old its files are.
//!
//! * `bundle`: one bundle, read and checked
//! * `unpacked`: its files in the cache
//! * `needed`: what a template needs of them

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use parking_lot::RwLock;

mod bundle;
mod needed;
mod unpacked;

use bundle::Bundle;
pub(crate) use needed::{Fit, MissingExtension, Needed};

use crate::{
    backend::program::Program,
    engine::{
        artefact::{Artefact, PACKAGES},
        cache::Cache,
    },
    fs::AddedFiles,
};

/// The directory in the guest's files that PostgreSQL is installed in.
pub(crate) const PREFIX: &str = "/pglite";

/// The extensions of one program.
pub(crate) struct Extensions {
    artefact: Artefact,
    program: Arc<Program>,
    cache: Cache,
    /// The bundles of the user's own.
    own: Vec<PathBuf>,
    offer: RwLock<Arc<Offer>>,
}

/// What is installed at some moment.
pub(crate) struct Offer {
    bundles: Vec<Bundle>,
    /// The files of all bundles.
    pub(crate) files: Arc<AddedFiles>,
}

impl Extensions {
    /// The packages that are installed beside `artefact`, and the bundles in the files `own`. Libraries in them are
    /// libraries that came with the program. A package that cannot be used is logged and not offered.
    ///
    /// # Errors
    /// When one of `own` cannot be used; the message says what in it is wrong.
    pub(crate) fn open(
        artefact: &Artefact,
        program: &Arc<Program>,
        cache: &Cache,
        own: &[PathBuf],
    ) -> anyhow::Result<Self> {
        let offer = RwLock::new(Arc::new(Offer::of(look(artefact, program, cache, own)?)));
        let (artefact, program, cache, own) = (artefact.clone(), program.clone(), cache.clone(), own.to_vec());
        Ok(Self { artefact, program, cache, own, offer })
    }

    /// What is installed, as of the last look.
    pub(crate) fn offer(&self) -> Arc<Offer> {
        self.offer.read().clone()
    }

    /// Looks again for what is installed; returns it if that has changed.
    ///
    /// # Errors
    /// As [`Extensions::open`]; what was offered before still is.
    pub(crate) fn look_again(&self) -> anyhow::Result<Option<Arc<Offer>>> {
        let bundles = look(&self.artefact, &self.program, &self.cache, &self.own)?;
        let mut offer = self.offer.write();
        if offer.bundles.iter().map(|bundle| &bundle.digest).eq(bundles.iter().map(|bundle| &bundle.digest)) {
            return Ok(None);
        }
        *offer = Arc::new(Offer::of(bundles));
        tracing::info!("the extensions in {} bundles are offered from now on", offer.bundles.len());
        Ok(Some(offer.clone()))
    }
}

/// Reads all bundles, and lets the program load their libraries.
fn look(artefact: &Artefact, program: &Program, cache: &Cache, own: &[PathBuf]) -> anyhow::Result<Vec<Bundle>> {
    let mut bundles: Vec<Bundle> = Vec::new();
    for package in &PACKAGES {
        let open = || -> anyhow::Result<Option<Bundle>> {
            let Some(path) = artefact.bundle(package, cache)? else { return Ok(None) };
            Ok(Some(Bundle::of_package(package, &path, cache)?))
        };
        match open() {
            Ok(bundle) => bundles.extend(bundle),
            Err(error) => tracing::warn!("the package {} is not offered: {error:#}", package.name),
        }
    }
    for path in own {
        let bundle = Bundle::of_file(path, program, cache, &bundles)
            .with_context(|| format!("the extension in {} cannot be used", path.display()))?;
        bundles.push(bundle);
    }
    for (name, hash) in bundles.iter().flat_map(|bundle| &bundle.libraries) {
        program.libraries().trust(name, hash);
    }
    Ok(bundles)
}

impl Offer {
    fn of(bundles: Vec<Bundle>) -> Self {
        let files = Arc::new(AddedFiles::new(bundles.iter().map(Bundle::files), PREFIX));
        Self { bundles, files }
    }
}
