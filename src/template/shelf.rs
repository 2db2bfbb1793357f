//! The directory of templates: one subdirectory for each, with a label that describes it.
//!
//! A subdirectory is built beside its place and renamed in whole, so that it is there whole or not at all; an open
//! one stays usable when it is replaced or removed. Its name is made from the template's name, which may be any that
//! a database may have.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{DEFAULT, recipe::Recipe, record, snapshot};
use crate::{
    engine::cache::{Cache, Digests, InUse, Lock, SealError, Usage, size_on_disk},
    extensions::Needed,
    quota::Limits,
    sources::hex_digest,
};

const LABEL: &str = "label";
const RECIPE: &str = "recipe";
/// Only there if there are limits.
const LIMITS: &str = "limits";
/// Only there if extensions are needed that an installation may lack.
const NEEDED: &str = "needed";

/// What a template is, without its contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Label {
    pub(super) name: String,
    /// The database in it.
    pub(super) database: String,
    /// The caller's key.
    pub(super) key: Option<String>,
    /// The program that built it: another one has to build it again.
    pub(super) program: String,
}

/// A template in a list.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its name.
    pub name: String,
    /// The database in it.
    pub database: String,
    /// The caller's key from when it was frozen, such as a hash of what it was made from.
    pub key: Option<String>,
    /// Bytes that it takes on disk.
    pub size: u64,
    /// When it was built.
    pub made: SystemTime,
    /// Whether it was prepared from SQL, which is kept, and not frozen from a running database.
    pub has_recipe: bool,
    /// The SHA-256 of what it is on disk: the same for an exported template and an imported one. Empty if that is
    /// damaged.
    pub digest: String,
}

/// Identifies one edition of a template among those that replace each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edition {
    inode: u64,
    changed: (i64, i64),
}

impl Edition {
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), changed: (metadata.ctime(), metadata.ctime_nsec()) }
    }
}

/// What of a template can be made again without losing anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Remakeable {
    /// All of it.
    Whole,
    /// These of its files, which take so many bytes on disk.
    Parts { names: &'static [&'static str], size: u64 },
    /// Nothing.
    Nothing,
}

/// The templates on disk.
pub struct Shelf {
    directory: Cache,
}

impl Shelf {
    /// The templates of the cache in `cache`, or of the user's cache.
    ///
    /// # Errors
    /// When it cannot be used; the message says what to do.
    pub fn open(cache: Option<&Path>) -> anyhow::Result<Self> {
        Self::of(&Cache::open(cache)?)
    }

    pub(super) fn of(cache: &Cache) -> anyhow::Result<Self> {
        Ok(Self { directory: cache.subdirectory("templates")? })
    }

    /// All templates that can be read, by name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> anyhow::Result<Vec<Summary>> {
        let mut summaries = Vec::new();
        for directory in self.directories()? {
            // What is not a template, or is just being replaced, is not listed.
            if let Ok(label) = read_label(&directory)
                && let Ok(metadata) = fs::metadata(directory.join(LABEL))
            {
                summaries.push(Summary {
                    digest: self.digests(&label.name).map(|digests| digests.digest()).unwrap_or_default(),
                    name: label.name,
                    database: label.database,
                    key: label.key,
                    size: size_on_disk(&directory).unwrap_or_default(),
                    made: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    has_recipe: directory.join(RECIPE).exists(),
                });
            }
        }
        summaries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(summaries)
    }

    /// Removes the template `name`; its clones live on. Returns whether there was one.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn remove(&self, name: &str) -> anyhow::Result<bool> {
        let lock = self.lock(name)?;
        self.directory.remove_directory(&lock)
    }

    /// The name of the template that was made last among those whose database is `database`.
    pub(super) fn with_database(&self, database: &str) -> anyhow::Result<Option<String>> {
        let mut found: Option<(SystemTime, String)> = None;
        for directory in self.directories()? {
            if let Ok(label) = read_label(&directory)
                && label.database == database
                && let Ok(made) = fs::metadata(directory.join(LABEL)).and_then(|metadata| metadata.modified())
            {
                found = found.max(Some((made, label.name)));
            }
        }
        Ok(found.map(|(_, name)| name))
    }

    /// Keeps other processes from building or removing the template `name`.
    pub(super) fn lock(&self, name: &str) -> anyhow::Result<Lock> {
        self.directory.lock(&entry(name))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path(&entry(name))
    }

    /// Which edition of the template `name` there is now, if any.
    pub(super) fn edition(&self, name: &str) -> Option<Edition> {
        fs::metadata(self.path(name).join(LABEL)).ok().map(|metadata| Edition::of(&metadata))
    }

    /// The digests of the files of the template `name`; `None` when there is none, or they are damaged.
    pub(super) fn digests(&self, name: &str) -> Option<Digests> {
        self.directory.digests(&entry(name))
    }

    /// Checks what was built of the template `name`.
    ///
    /// # Errors
    /// When it is damaged.
    pub(super) fn check_built(&self, name: &str) -> anyhow::Result<()> {
        let is_built = |path: &str| ![LABEL, RECIPE].contains(&record::without_copy(path));
        // Both copies of what cannot be made again are read, so that one is restored while the other is intact.
        let _ = self.recipe(name);
        let compared = self.directory.compare(&entry(name), is_built);
        compared.with_context(|| self.path(name).display().to_string())
    }

    /// Checks the files of the cluster in the template `name`, as far as that has intact digests: it may have been made
    /// by an earlier version of the program.
    ///
    /// # Errors
    /// When they are damaged.
    pub(super) fn check_files(&self, name: &str) -> anyhow::Result<()> {
        match self.directory.compare(&entry(name), snapshot::is_of_files) {
            Err(SealError::Unsealed) => Ok(()),
            compared => compared.with_context(|| self.path(name).display().to_string()),
        }
    }

    /// The label of the template `name`; `None` when there is none, an error when it cannot be read.
    pub(super) fn label(&self, name: &str) -> anyhow::Result<Option<Label>> {
        let directory = self.path(name);
        if directory.exists() { read_label(&directory).map(Some) } else { Ok(None) }
    }

    /// What the template `name` was prepared from; `None` when it was frozen.
    pub(super) fn recipe(&self, name: &str) -> anyhow::Result<Option<Recipe>> {
        recipe_in(&self.path(name))
    }

    /// Puts the template of that label in place, whose contents `fill` writes; it returns what the template needs.
    ///
    /// # Errors
    /// Those of `fill`, and when the directory cannot be written.
    pub(super) fn publish(
        &self,
        lock: &Lock,
        label: &Label,
        recipe: Option<&Recipe>,
        limits: Limits,
        fill: impl FnOnce(&Path) -> anyhow::Result<Vec<Needed>>,
    ) -> anyhow::Result<PathBuf> {
        self.directory.publish_directory(lock, |directory| {
            let needed = fill(directory)?;
            if !needed.is_empty() {
                record::write_with_copy(&directory.join(NEEDED), &needed)?;
            }
            if limits != Limits::default() {
                record::write_with_copy(&directory.join(LIMITS), &(limits.memory, limits.disk))?;
            }
            if let Some(recipe) = recipe {
                record::write_with_copy(&directory.join(RECIPE), recipe)?;
            }
            record::write_with_copy(&directory.join(LABEL), label)
        })
    }

    /// Puts a template in place whose files `fill` writes, its label among them.
    ///
    /// # Errors
    /// Those of `fill`, and when the directory cannot be written.
    pub(super) fn publish_files(
        &self,
        lock: &Lock,
        fill: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<PathBuf> {
        self.directory.publish_directory(lock, fill)
    }

    /// The limits of clusters that are copies of the template `name`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn limits(&self, name: &str) -> anyhow::Result<Limits> {
        limits_in(&self.path(name))
    }

    /// The extensions beyond those of PGlite that the template `name` needs.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn needed(&self, name: &str) -> anyhow::Result<Vec<Needed>> {
        needed_in(&self.path(name))
    }

    /// Keeps the template `name` from being removed for not being used; `None` when there is none.
    pub(super) fn hold(&self, name: &str) -> anyhow::Result<Option<InUse>> {
        self.directory.hold(&entry(name))
    }

    /// The directory of all templates.
    pub(crate) fn directory(&self) -> &Cache {
        &self.directory
    }

    /// The name of the template in an entry of [`Shelf::directory`], and what of it can be made again. The default
    /// template can be made again as a whole. Of other templates, the files that another program than `program` has
    /// built can, because this program cannot use them. Nothing can of a template that cannot be read.
    pub(crate) fn remakeable(&self, usage: &Usage, program: &str) -> (String, Remakeable) {
        let directory = self.directory.path(&usage.name);
        let Ok(label) = read_label(&directory) else { return (usage.name.clone(), Remakeable::Nothing) };
        let remakeable = match self.recipe(&label.name) {
            Ok(Some(recipe)) if label.name == DEFAULT && recipe == Recipe::empty(DEFAULT) => Remakeable::Whole,
            Ok(_) if label.program.ends_with(program) => Remakeable::Nothing,
            Ok(Some(_)) => parts(&directory, &snapshot::ALL),
            Ok(None) => parts(&directory, &snapshot::BUILT),
            Err(_) => Remakeable::Nothing,
        };
        (label.name, remakeable)
    }

    fn directories(&self) -> anyhow::Result<Vec<PathBuf>> {
        let directory = self.directory.path("");
        let entries = fs::read_dir(&directory).with_context(|| format!("{} cannot be read", directory.display()))?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let is_hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        Ok(paths.filter(|path| !is_hidden(path) && path.is_dir()).collect())
    }
}

/// The name of a template's directory.
fn entry(name: &str) -> String {
    let readable: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(32).collect();
    format!("{readable}-{}", &hex_digest(&[name.as_bytes()])[..16])
}

fn parts(directory: &Path, names: &'static [&'static str]) -> Remakeable {
    match names.iter().filter_map(|name| size_on_disk(&directory.join(name)).ok()).sum() {
        0 => Remakeable::Nothing,
        size => Remakeable::Parts { names, size },
    }
}

/// The label of the template in `directory`.
pub(super) fn read_label(directory: &Path) -> anyhow::Result<Label> {
    record::read_with_copy(&directory.join(LABEL))
}

/// What the template in `directory` was prepared from; `None` when it was frozen.
pub(super) fn recipe_in(directory: &Path) -> anyhow::Result<Option<Recipe>> {
    let path = directory.join(RECIPE);
    if path.exists() { record::read_with_copy(&path).map(Some) } else { Ok(None) }
}

/// The limits of clusters that are copies of the template in `directory`.
pub(super) fn limits_in(directory: &Path) -> anyhow::Result<Limits> {
    let path = directory.join(LIMITS);
    if !path.exists() {
        return Ok(Limits::default());
    }
    let (memory, disk) = record::read_with_copy(&path)?;
    Ok(Limits { memory, disk })
}

/// The extensions beyond those of PGlite that the template in `directory` needs.
pub(super) fn needed_in(directory: &Path) -> anyhow::Result<Vec<Needed>> {
    let path = directory.join(NEEDED);
    if path.exists() { record::read_with_copy(&path) } else { Ok(Vec::new()) }
}

/// Whether a template may have a file at `path` in its directory, besides its digests.
pub(super) fn is_part(path: &str) -> bool {
    let is_record = [LABEL, RECIPE, LIMITS, NEEDED].contains(&record::without_copy(path));
    is_record || snapshot::PARTS.contains(&path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shelf() -> (tempfile::TempDir, Shelf) {
        let outer = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(Some(&outer.path().join("cache"))).unwrap();
        (outer, shelf)
    }

    fn put(shelf: &Shelf, name: &str, database: &str, recipe: Option<&Recipe>) {
        let label = Label { name: name.into(), database: database.into(), key: None, program: "p".into() };
        let lock = shelf.lock(name).unwrap();
        shelf
            .publish(&lock, &label, recipe, Limits::default(), |directory| {
                fs::write(directory.join("x"), [1; 5000])?;
                Ok(Vec::new())
            })
            .unwrap();
    }

    #[test]
    fn templates_are_listed_by_name_with_what_there_is_to_know() {
        let (_outer, shelf) = shelf();
        // In no order that a directory could have them in by itself.
        put(&shelf, "d", "four", None);
        // Alike but for what a file's name may not have.
        put(&shelf, "b.ä", "five", None);
        // What is not in its place yet.
        fs::create_dir(shelf.directory().path(".new-d")).unwrap();
        fs::copy(shelf.path("d").join(LABEL), shelf.directory().path(".new-d").join(LABEL)).unwrap();
        put(&shelf, "b/ä", "one", Some(&Recipe::empty("one")));
        put(&shelf, "c", "three", None);
        put(&shelf, "a", "two", None);
        let list = shelf.list().unwrap();
        let told: Vec<_> = list.iter().map(|s| (s.name.as_str(), s.database.as_str(), s.has_recipe)).collect();
        let expected = [
            ("a", "two", false),
            ("b.ä", "five", false),
            ("b/ä", "one", true),
            ("c", "three", false),
            ("d", "four", false),
        ];
        assert_eq!(told, expected);
        assert!(list[0].size >= 5000);
        assert_eq!(shelf.recipe("b/ä").unwrap(), Some(Recipe::empty("one")));
    }

    #[test]
    fn a_removed_template_is_gone_and_another_edition_is_another() {
        let (_outer, shelf) = shelf();
        put(&shelf, "a", "one", None);
        let first = shelf.edition("a").unwrap();
        put(&shelf, "a", "one", None);
        assert_ne!(shelf.edition("a").unwrap(), first);
        assert!(shelf.remove("a").unwrap());
        assert!(!shelf.remove("a").unwrap());
        assert!(shelf.edition("a").is_none() && shelf.list().unwrap().is_empty());
    }

    #[test]
    fn the_template_made_last_answers_to_its_database() {
        let (_outer, shelf) = shelf();
        let now = SystemTime::now();
        for (name, seconds) in [("a", 2), ("b", 3), ("c", 1)] {
            put(&shelf, name, "app", None);
            let label = fs::File::open(shelf.path(name).join(LABEL)).unwrap();
            label.set_modified(now - Duration::from_secs(10 - seconds)).unwrap();
        }
        assert_eq!(shelf.with_database("app").unwrap().as_deref(), Some("b"));
        assert_eq!(shelf.with_database("b").unwrap(), None);
    }

    #[test]
    fn a_damaged_label_is_made_again_from_its_copy_and_an_error_if_that_is_damaged_too() {
        let (_outer, shelf) = shelf();
        put(&shelf, "a", "app", None);
        let label = shelf.path("a").join(LABEL);
        for damaged in [&label, &record::copy_of(&label)] {
            fs::write(damaged, b"what is this").unwrap();
            assert_eq!(shelf.list().unwrap().len(), 1);
            assert_eq!(fs::read(&label).unwrap(), fs::read(record::copy_of(&label)).unwrap());
        }
        for damaged in [&label, &record::copy_of(&label)] {
            fs::write(damaged, b"what is this").unwrap();
        }
        assert!(shelf.label("a").unwrap_err().to_string().contains("damaged"));
        assert!(shelf.list().unwrap().is_empty());
    }
}
