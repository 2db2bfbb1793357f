//! What a template needs: the extensions that were created in its database.

use serde::{Deserialize, Serialize};

use super::{
    Offer,
    bundle::{Bundle, Origin},
};
use crate::engine::artefact::Package;

/// An extension that a template needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Needed {
    extension: String,
    /// The SHA-256 of the bundle that it was in.
    digest: String,
    /// The name of the bundle's file.
    file: String,
}

/// How what is installed fits what a template needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It has the same bundles.
    Same,
    /// This extension is in another bundle than it was.
    Changed(String),
}

/// A template needs an extension that is not installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it needs the extension {extension:?}, which is not installed")]
pub(crate) struct MissingExtension {
    pub(crate) extension: String,
    /// The name of the bundle's file when the template was made.
    file: String,
}

impl MissingExtension {
    /// What to do.
    pub(crate) fn advice(&self) -> String {
        match Package::with_extension(&self.extension) {
            Some(package) if package.bundle.name == self.file => package.advice(),
            _ => format!(
                "Start pglite-port with --extension FILE, or in Elixir with extensions: [FILE]; the file was {} when \
                 the template was made.",
                self.file
            ),
        }
    }
}

impl Offer {
    /// Those of `extensions` that are in bundles: what a template needs in which these were created.
    pub(crate) fn needed(&self, extensions: &[String]) -> Vec<Needed> {
        let needed = |extension: &String| {
            let bundle = self.bundle_with(extension)?;
            let file = match &bundle.origin {
                Origin::Package(package) => package.bundle.name.to_owned(),
                Origin::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            };
            Some(Needed { extension: extension.clone(), digest: bundle.digest.clone(), file })
        };
        extensions.iter().filter_map(needed).collect()
    }

    /// Whether what is installed is what was `needed`.
    ///
    /// # Errors
    /// [`MissingExtension`] for the first that is not installed.
    pub(crate) fn fit(&self, needed: &[Needed]) -> Result<Fit, MissingExtension> {
        let mut fit = Fit::Same;
        for Needed { extension, digest, file } in needed {
            match self.bundle_with(extension) {
                None => return Err(MissingExtension { extension: extension.clone(), file: file.clone() }),
                Some(bundle) if &bundle.digest != digest => fit = Fit::Changed(extension.clone()),
                Some(_) => {}
            }
        }
        Ok(fit)
    }

    fn bundle_with(&self, extension: &str) -> Option<&Bundle> {
        self.bundles.iter().find(|bundle| bundle.has(extension))
    }
}
