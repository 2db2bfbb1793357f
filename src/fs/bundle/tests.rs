use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

use super::*;
use crate::fs::{S_IFMT, frozen::ROOT};

const SCRIPT: &[u8] = br#"x={a:1};load({files:[{filename:"/pglite/bin/postgres",start:0,end:3},{filename:"/pglite/share/b",start:3,end:7}],remote_package_size:7})"#;

fn open(script: &[u8], data: &[u8]) -> Result<Arc<FrozenTree>, BundleError> {
    let directory = tempfile::tempdir().unwrap();
    let (script_path, data_path) = (directory.path().join("s"), directory.path().join("d"));
    std::fs::write(&script_path, script).unwrap();
    std::fs::write(&data_path, data).unwrap();
    open_bundle(&data_path, &script_path)
}

/// Mode and content of a file.
fn file(tree: &Tree, path: &str) -> Option<(u32, Vec<u8>)> {
    let mut ino = ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        ino = tree.lookup(ino, name.as_bytes()).unwrap()?;
    }
    let node = tree.node(ino)?;
    let Kind::File(content) = &node.kind else {
        return None;
    };
    let mut bytes = vec![0; usize::try_from(content.len()).unwrap()];
    content.read_at(0, &mut bytes);
    Some((node.mode() & !S_IFMT, bytes))
}

#[test]
fn a_bundle_becomes_a_tree_that_holds_nothing_in_memory() {
    let tree = Tree::from_frozen(open(SCRIPT, b"abcdefg").unwrap());
    assert_eq!(file(&tree, "/pglite/bin/postgres"), Some((0o555, b"abc".to_vec())));
    assert_eq!(file(&tree, "/pglite/share/b"), Some((0o644, b"defg".to_vec())));
    assert_eq!(tree.private_bytes(), 0);
    let script = br#"files:[{filename:"/home/.pgpass",start:0,end:1}]"#;
    let tree = Tree::from_frozen(open(script, b"a").unwrap());
    assert_eq!(file(&tree, "/home/.pgpass"), Some((0o600, b"a".to_vec())), "it is its owner's alone");
}

#[test]
fn a_bundle_that_is_not_as_expected_is_refused_with_the_place() {
    let error = |script: &str| open(script.as_bytes(), b"abcdefg").unwrap_err().to_string();
    assert!(error("no index here").contains("there is no `files:[{filename:`"));
    assert!(error(r#"files:[{filename:"/a",start:x"#).contains("at byte 28: a whole number"));
    assert!(error(r#"files:[{filename:"/a",start:0,end:1}"#).contains("`,` or `]`"));
    assert!(error(r#"files:[{filename:"/a\n",start:0,end:1}]"#).contains("without escapes"));
    assert!(
        error(r#"files:[{filename:"/a",start:0,end:8}]"#).contains("bytes 0 to 8 of PGlite's data file, which has 7")
    );
    assert!(error(r#"files:[{filename:"/a",start:5,end:4}]"#).contains("bytes 5 to 4"));
    assert!(error(r#"files:[{filename:"/../a",start:0,end:1}]"#).contains("EINVAL"));
    assert!(error(r#"files:[{filename:"/a",start:0,end:1},{filename:"/a",start:0,end:1}]"#).contains("EEXIST"));
    let missing = open_bundle(Path::new("/nowhere/d"), Path::new("/nowhere/s")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/s"));
}

proptest! {
    #[test]
    fn reading_an_index_never_panics(cut in 0..SCRIPT.len(), at in 0..SCRIPT.len(), byte: u8) {
        let mut script = SCRIPT.to_vec();
        script[at] = byte;
        let _ = parse_index(&script);
        let _ = parse_index(&SCRIPT[..cut]);
    }
}

fn archive(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, mode, bytes) in files {
        let mut header = tar::Header::new_gnu();
        // Written by hand: the crate itself refuses to write names that escape.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(*mode);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

#[test]
fn an_extension_is_unpacked_below_its_directory_and_replaces_older_files() {
    let mut tree = Tree::new();
    let old = archive(&[("lib/postgresql/x.so", 0o755, b"old")]);
    let new = archive(&[
        ("share/x.control", 0o644, b"c"),
        (".hidden", 0o644, b"h"),
        ("empty/", 0o755, b""),
        ("lib/postgresql/x.so", 0o755, b"new"),
    ]);
    unpack_extension(&mut tree, old.as_slice(), "/pglite").unwrap();
    let paths = unpack_extension(&mut tree, new.as_slice(), "/pglite").unwrap();
    assert_eq!(paths, ["/pglite/share/x.control", "/pglite/lib/postgresql/x.so"]);
    assert_eq!(file(&tree, "/pglite/lib/postgresql/x.so"), Some((0o755, b"new".to_vec())));
    assert_eq!(file(&tree, "/pglite/share/x.control"), Some((0o644, b"c".to_vec())));
    assert_eq!(file(&tree, "/pglite/.hidden"), None);
    let inodes = tree.inodes();
    make_directories(&mut tree, b"/pglite/empty").unwrap();
    assert_eq!(tree.inodes(), inodes, "an empty directory is there already");
}

#[test]
fn an_archive_with_anything_else_than_files_is_refused() {
    for kind in [tar::EntryType::Link, tar::EntryType::Char, tar::EntryType::Fifo] {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, "share/a", "share/b").unwrap();
        let error = read_archive(builder.into_inner().unwrap().finish().unwrap().as_slice());
        assert!(matches!(error, Err(BundleError::Kind { ref name, .. }) if name == "share/a"), "{kind:?}: {error:?}");
    }
}

#[test]
fn a_small_archive_of_much_is_refused_before_it_fills_the_memory() {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
    let mut header = tar::Header::new_gnu();
    header.set_size(1 << 40);
    builder.append_data(&mut header, "share/a", std::io::repeat(0).take(600 << 20)).unwrap();
    let archive = builder.into_inner().unwrap().finish().unwrap();
    assert!(archive.len() < 1 << 20, "{}", archive.len());
    let error = read_archive(archive.as_slice()).unwrap_err().to_string();
    assert!(error.contains("it unpacks to more than 512 MiB"), "{error}");
}

#[test]
fn an_archive_that_leads_out_of_its_directory_is_refused() {
    for name in ["../evil", "a/../../evil", "/etc/evil"] {
        let error = unpack_extension(&mut Tree::new(), archive(&[(name, 0o644, b"x")]).as_slice(), "/pglite");
        assert!(matches!(error, Err(BundleError::Escape(_))), "{name}: {error:?}");
    }
}

#[test]
fn links_to_names_beside_them_are_unpacked_and_others_lead_out() {
    let link = |target: &str| {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "share/a--1.0.sql", target).unwrap();
        builder.into_inner().unwrap().finish().unwrap()
    };
    let files = read_archive(link("b.sql").as_slice()).unwrap();
    assert_eq!(files, [ArchivedFile { path: "share/a--1.0.sql".into(), content: Archived::Link("b.sql".into()) }]);
    let mut tree = Tree::new();
    unpack_extension(&mut tree, link("b.sql").as_slice(), "/pglite").unwrap();
    let share = make_directories(&mut tree, b"/pglite/share").unwrap();
    let ino = tree.lookup(share, b"a--1.0.sql").unwrap().unwrap();
    assert!(matches!(&tree.node(ino).unwrap().kind, Kind::Symlink(target) if &**target == b"b.sql"));
    for target in ["../b.sql", "/etc/passwd", "c/b.sql"] {
        assert!(matches!(read_archive(link(target).as_slice()), Err(BundleError::Escape(_))), "{target}");
    }
}

#[test]
fn a_damaged_archive_is_an_error() {
    let mut bytes = archive(&[("a", 0o644, b"x")]);
    bytes.truncate(bytes.len() / 2);
    assert!(matches!(unpack_extension(&mut Tree::new(), bytes.as_slice(), "/p"), Err(BundleError::Archive(_))));
    let mut noise = Vec::new();
    noise.write_all(b"not gzip at all").unwrap();
    assert!(matches!(unpack_extension(&mut Tree::new(), noise.as_slice(), "/p"), Err(BundleError::NotCompressed)));
}
