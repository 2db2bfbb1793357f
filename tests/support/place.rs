//! A directory for a test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// A directory that is removed with this, and paths in it.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("text").to_owned()
    }

    /// The names of what is there.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory()).expect("a directory");
        let mut names: Vec<_> = entries.map(|it| it.expect("an entry").file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
