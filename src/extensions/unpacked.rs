//! The files of a bundle, unpacked once into the cache: unpacking them would take longer than the rest of a start.

use std::sync::Arc;

use crate::{
    engine::cache::{Cache, InUse},
    fs::FrozenTree,
    sources::{contents_key, hex_digest},
};

/// The files of a bundle.
pub(super) struct Unpacked {
    tree: Arc<FrozenTree>,
    _in_use: Option<InUse>,
}

impl Unpacked {
    /// The files in the cache of the bundle with the SHA-256 `digest`, as this program with the code of that key checks
    /// them, or those that `unpack` returns. If the cache cannot be written, they are in memory for this run of the
    /// program.
    ///
    /// # Errors
    /// Those of `unpack`.
    pub(super) fn open(
        cache: &Cache,
        digest: &str,
        program: &str,
        unpack: impl FnOnce() -> anyhow::Result<Arc<FrozenTree>>,
    ) -> anyhow::Result<Self> {
        let entry = format!("extension-{}", &hex_digest(&[digest.as_bytes(), contents_key(program).as_bytes()])[..32]);
        if let Some(unpacked) = Self::find(cache, &entry) {
            return Ok(unpacked);
        }
        let lock = cache.lock(&entry);
        // Another process may have unpacked it while this one waited for the lock.
        if let Some(unpacked) = Self::find(cache, &entry) {
            return Ok(unpacked);
        }
        let tree = unpack()?;
        let published = lock.and_then(|lock| cache.publish_directory(&lock, |place| Ok(tree.write_to(place)?)));
        match published {
            Ok(_) => Ok(Self::find(cache, &entry).unwrap_or(Self { tree, _in_use: None })),
            Err(error) => {
                tracing::warn!("an extension was unpacked for this run of the program only: {error:#}");
                Ok(Self { tree, _in_use: None })
            }
        }
    }

    fn find(cache: &Cache, entry: &str) -> Option<Self> {
        let open = || -> anyhow::Result<Option<Self>> {
            let Some(in_use) = cache.hold_intact(entry)? else { return Ok(None) };
            Ok(Some(Self { tree: FrozenTree::open(&cache.path(entry))?, _in_use: Some(in_use) }))
        };
        open().unwrap_or_else(|error| {
            tracing::warn!("unpacking an extension again, because {error:#}");
            None
        })
    }

    pub(super) fn tree(&self) -> &FrozenTree {
        &self.tree
    }
}
