use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{
    CODE, CONTENTS, code_key, contents_key,
    digest::{self, ABOVE, ASIDE, decides_code, decides_contents},
    key,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A copy of all inputs of the digests.
fn copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for path in digest::files(&root().join("src")).unwrap().into_iter().chain([root().join("Cargo.lock")]) {
        let target = copy.path().join(path.strip_prefix(root()).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
    copy
}

/// Which of the two digests change when `more` is appended to the file at `path`.
fn changed_by(path: &str, more: &str) -> (bool, bool) {
    let copy = copy();
    let path = copy.path().join(path);
    let content = fs::read_to_string(&path).unwrap_or_default();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content + more).unwrap();
    let of = |is_wanted| digest::of(copy.path(), is_wanted).unwrap();
    (of(decides_code) != CODE, of(decides_contents) != CONTENTS)
}

#[test]
fn other_sources_and_other_origins_have_other_keys() {
    let keys = [key("a", "1"), key("a", "2"), key("b", "1"), key("b", "2")];
    assert_eq!(BTreeSet::from(keys).len(), 4);
    assert_ne!(CODE, CONTENTS);
    assert_eq!((code_key("a"), contents_key("a")), (key("a", CODE), key("a", CONTENTS)));
}

#[test]
fn the_digests_of_a_copy_of_the_sources_are_this_programs() {
    assert_eq!(changed_by("src/instrument/targets.rs", ""), (false, false));
}

#[test]
fn a_change_of_the_rewriter_or_the_engine_changes_the_keys_of_everything() {
    for path in [
        "src/instrument/targets.rs",
        "src/engine.rs",
        "src/image.rs",
        "src/instrument/new.rs",
        "src/instrument/calls.txt",
    ] {
        assert_eq!(changed_by(path, "//"), (true, true), "{path}");
    }
}

#[test]
fn a_change_of_what_makes_clusters_changes_their_keys_and_not_those_of_compiled_code() {
    let made_by = ["src/guest/dylink/link.rs", "src/fs/store.rs", "src/template/build.rs", "src/backend/sql.rs"];
    for path in made_by.into_iter().chain(["src/engine/artefact/extensions.rs", "src/new.rs", "src/new/mod.rs"]) {
        assert_eq!(changed_by(path, "//"), (false, true), "{path}");
    }
}

#[test]
fn a_change_of_what_serves_clients_or_of_a_test_changes_no_key() {
    for path in ["src/port/router.rs", "src/main.rs", "src/serve/listener.rs", "src/instrument/tests.rs", "Cargo.lock"]
    {
        assert_eq!(changed_by(path, "//"), (false, false), "{path}");
    }
}

#[test]
fn another_version_of_wasmtime_changes_the_keys_of_everything_and_one_of_clap_none() {
    let package = |name| format!("[[package]]\nname = \"{name}\"\nversion = \"999.0.0\"\n");
    for name in ["wasmtime", "cranelift-codegen", "wasm-encoder", "wasmparser"] {
        assert_eq!(changed_by("Cargo.lock", &package(name)), (true, true), "{name}");
    }
    assert_eq!(changed_by("Cargo.lock", &package("clap")), (false, false));
}

#[test]
fn what_decides_about_contents_uses_nothing_that_does_not() {
    // Messages to clients and the log are not stored.
    let allowed = |part: &str| decides_contents(part) || ASIDE.contains(&part);
    for (path, part) in uses(decides_contents) {
        assert!(allowed(&part), "{} uses {part}: take it from the lists in sources/digest.rs", path.display());
    }
}

#[test]
fn what_decides_about_code_uses_nothing_that_does_not() {
    // Host functions are linked when the code is loaded; `fs` is used only to test for zeros, `quota` only counts.
    let allowed = |part: &str| decides_code(part) || ["fs", "guest", "quota", "sources"].contains(&part);
    for (path, part) in uses(decides_code) {
        assert!(allowed(&part), "{} uses {part}: it may be missing in the list in sources/digest.rs", path.display());
    }
}

#[test]
fn the_lists_name_what_there_is() {
    for part in ABOVE.iter().chain(&ASIDE).chain(&digest::CODE) {
        let source = root().join("src");
        assert!(source.join(part).is_dir() || source.join(format!("{part}.rs")).is_file(), "{part}");
    }
}

/// The parts of `src/` that each file of the wanted parts names.
fn uses(is_wanted: fn(&str) -> bool) -> Vec<(PathBuf, String)> {
    let source = root().join("src");
    let files = digest::files(&source).unwrap();
    let part = |path: &Path| digest::part(path.strip_prefix(&source).unwrap()).unwrap().to_owned();
    let parts: BTreeSet<String> = files.iter().map(|path| part(path)).collect();
    let mut uses = Vec::new();
    for path in files.into_iter().filter(|path| is_wanted(&part(path))) {
        let text = fs::read_to_string(&path).unwrap();
        // Single names, and lists as rustfmt formats them, on one line or with one name on each line.
        for list in text.split("crate::").skip(1) {
            let end = if list.starts_with('{') { list.find(';') } else { list.find(|c: char| !is_in_name(c)) };
            let names = list[..end.unwrap_or(list.len())].split(|c| !is_in_name(c));
            uses.extend(names.filter(|name| parts.contains(*name)).map(|name| (path.clone(), name.to_owned())));
        }
    }
    assert!(!uses.is_empty());
    uses
}

fn is_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
