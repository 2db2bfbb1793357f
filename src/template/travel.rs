//! Templates on their way to other caches: exporting one into a parcel, and importing it from there.

use std::{
    io::{Read, Write},
    path::Path,
};

use anyhow::Context;

use super::{
    catalog::Templates,
    parcel::{self, Header, Origin, Parcel, ParcelError, damaged},
    recipe::quote_identifier,
    shelf::{self, Label},
    snapshot::Snapshot,
};
use crate::{
    engine::artefact::{PGLITE_VERSION, PINNED_FILES},
    extensions::Fit,
    sources::{self, hex_digest},
};

/// A template that was written as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The length of the file, in bytes.
    pub bytes: u64,
    /// The digest of the template, which is that of the imported one as well: see
    /// [`Summary::digest`](super::Summary::digest).
    pub digest: String,
}

/// A template that was read from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Its name.
    pub name: String,
    /// The database in it.
    pub database: String,
    /// Its digest: see [`Summary::digest`](super::Summary::digest).
    pub digest: String,
    /// Whether it was not there before.
    pub is_new: bool,
}

impl Templates {
    /// Writes the template `name` to `out`, from where [`Templates::import`] reads it. It is built before if another
    /// version of the program has built it.
    ///
    /// # Errors
    /// When there is none, it cannot be built or is damaged, or `out` cannot be written.
    pub fn export(&self, name: &str, out: &mut dyn Write) -> anyhow::Result<Exported> {
        // While it is locked, no other program replaces it.
        let lock = self.shelf().lock(name)?;
        let template = self.open_or_build(name, &lock)?;
        let mut export = || -> anyhow::Result<Exported> {
            let label = self.shelf().label(name)?.context("it is gone")?;
            let digests = self.shelf().digests(name).context("it has no digests")?;
            let bytes = parcel::write(self.origin(), label, &self.shelf().path(name), &digests, out)?;
            Ok(Exported { bytes, digest: digests.digest() })
        };
        let exported = export().with_context(|| format!("the template {name:?} cannot be exported"));
        // It is held until then.
        drop(template);
        exported
    }

    /// Puts the template that `input` has into its place, under the name that it was exported with. One of the same
    /// name is replaced, unless it is the same. `input` need not be trusted: what is in it can do no more than a
    /// database.
    ///
    /// # Errors
    /// [`ParcelError`]; then what was there before still is.
    pub fn import(&self, input: &mut dyn Read) -> Result<Imported, ParcelError> {
        let mut parcel = Parcel::open(input)?;
        let header = parcel.header.clone();
        let Label { name, database, .. } = &header.template;
        self.check(&header)?;
        let digest = header.digests().digest();
        let imported = |is_new| Imported { name: name.clone(), database: database.clone(), digest, is_new };
        let lock = self.shelf().lock(name)?;
        let is_there = self.shelf().digests(name).as_ref() == Some(&header.digests());
        if is_there && self.shelf().check_built(name).is_ok() {
            return Ok(imported(false));
        }
        let received = self.shelf().publish_files(&lock, |directory| {
            parcel.unpack(directory)?;
            self.check_received(directory, &header)
        });
        match received.map_err(anyhow::Error::downcast::<ParcelError>) {
            Ok(_) => Ok(imported(true)),
            Err(Ok(error)) => Err(error),
            Err(Err(error)) => Err(error.context(format!("the template {name:?} cannot be imported")).into()),
        }
    }

    /// Checks by its header that this program can use a template.
    fn check(&self, header: &Header) -> Result<(), ParcelError> {
        let Header { origin, template: Label { name, database, program, .. }, .. } = header;
        let differences = origin.differences(&self.origin());
        if !differences.is_empty() {
            let (name, advice) = (name.clone(), Some("Export it again with this version of the program.".to_owned()));
            return Err(ParcelError::Unfit { name, differences, advice });
        }
        if name.is_empty() || name.contains('\0') || quote_identifier(database).is_err() || *program != self.key() {
            return Err(damaged("it contradicts itself"));
        }
        Ok(())
    }

    /// Checks that the files in `directory` are those of a template that this program can use.
    fn check_received(&self, directory: &Path, header: &Header) -> anyhow::Result<()> {
        let contradicts = |problem: &str| damaged(format!("it contradicts itself: {problem}"));
        let read = || -> anyhow::Result<_> {
            shelf::limits_in(directory)?.check()?;
            shelf::recipe_in(directory)?;
            Ok((shelf::read_label(directory)?, shelf::needed_in(directory)?))
        };
        let (label, needed) = read().map_err(|error| contradicts(&format!("{error:#}")))?;
        if label != header.template {
            return Err(contradicts("its label is that of another template").into());
        }
        let unfit = |difference: String, advice: Option<String>| ParcelError::Unfit {
            name: label.name.clone(),
            differences: vec![difference],
            advice,
        };
        let offer = self.extensions().offer();
        match offer.fit(&needed) {
            Ok(Fit::Same) => {}
            Ok(Fit::Changed(extension)) => {
                let difference = format!("it has another build of the extension {extension:?}");
                return Err(unfit(difference, None).into());
            }
            Err(missing) => return Err(unfit(missing.to_string(), Some(missing.advice())).into()),
        }
        // What memory and globals say can be anything that the code of a guest could have written.
        let opened = Snapshot::open(self.program(), directory, &offer.files);
        opened.map(drop).map_err(|error| contradicts(&format!("{error:#}")).into())
    }

    /// What templates of this program depend on.
    fn origin(&self) -> Origin {
        let artefact = PINNED_FILES.map(|file| file.sha256.as_bytes());
        Origin {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pglite: PGLITE_VERSION.to_owned(),
            artefact: hex_digest(&artefact),
            code: sources::CODE.to_owned(),
            contents: sources::CONTENTS.to_owned(),
            icu: self.icu_digest(),
        }
    }
}
