use super::*;
use crate::fs::{
    archive::{Archived, ArchivedFile},
    bundle::tree_of,
    frozen::ROOT,
    node::Kind,
};

fn file(path: &str, bytes: &str) -> ArchivedFile {
    let content = Archived::File { bytes: bytes.as_bytes().to_vec(), is_executable: false };
    ArchivedFile { path: path.to_owned(), content }
}

/// Each file in a tree of its own.
fn set(files: &[(&str, &str)]) -> Arc<AddedFiles> {
    let tree = |(path, bytes): &(&str, &str)| tree_of(vec![file(path, bytes)], |_| true).unwrap();
    let trees: Vec<_> = files.iter().map(tree).collect();
    let contents = files.iter().map(|(_, bytes)| *bytes);
    Arc::new(AddedFiles::new(trees.iter().map(Arc::as_ref).zip(contents), "/p"))
}

/// Number and content of a file.
fn read(tree: &Tree, path: &str) -> Option<(Ino, String)> {
    let mut ino = ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        ino = tree.lookup(ino, name.as_bytes()).unwrap()?;
    }
    let Kind::File(content) = &tree.node(ino)?.kind else { return None };
    let mut bytes = vec![0; usize::try_from(content.len()).unwrap()];
    content.read_at(0, &mut bytes);
    Some((ino, String::from_utf8(bytes).unwrap()))
}

#[test]
fn added_files_are_in_a_tree_and_in_those_that_are_made_from_it() {
    let files = set(&[("share/a", "one"), ("lib/b", "two")]);
    let frozen = FrozenTree::empty().with(&files).unwrap();
    let mut tree = Tree::from_frozen(frozen.clone());
    assert!(frozen.has_added(&files) && tree.has_added(&files));
    assert_eq!(read(&tree, "/p/share/a").unwrap().1, "one");
    assert_eq!(read(&Tree::from_frozen(tree.freeze()), "/p/lib/b").unwrap().1, "two");
    assert!(Arc::ptr_eq(&frozen, &frozen.with(&files).unwrap()), "they are there already");
}

#[test]
fn a_file_has_one_number_everywhere_and_another_content_has_another() {
    let number = |files: &Arc<AddedFiles>| {
        let tree = Tree::from_frozen(FrozenTree::empty().with(files).unwrap());
        read(&tree, "/p/a").unwrap().0
    };
    let (alone, beside) = (set(&[("a", "one")]), set(&[("0", "zero"), ("a", "one")]));
    assert_eq!(number(&alone), number(&beside));
    assert_ne!(number(&alone), number(&set(&[("a", "two")])));
}

#[test]
fn another_set_replaces_the_files_of_the_one_before() {
    let mut tree = Tree::new();
    tree.add(&set(&[("a", "one"), ("b", "old"), ("c", "gone")])).unwrap();
    let later = set(&[("a", "one"), ("b", "new"), ("d", "more")]);
    tree.add(&later).unwrap();
    let content = |path: &str| read(&tree, path).map(|(_, content)| content);
    let found = ["/p/a", "/p/b", "/p/c", "/p/d"].map(content);
    assert_eq!(found.each_ref().map(Option::as_deref), [Some("one"), Some("new"), None, Some("more")]);
    tree.add(&Arc::default()).unwrap();
    assert_eq!(read(&tree, "/p/a"), None);
}

#[test]
fn a_file_of_the_trees_own_stays_and_so_does_one_that_the_guest_has_renamed() {
    let mut tree = Tree::new();
    let parent = make_directories(&mut tree, b"/p").unwrap();
    tree.create(parent, b"a", file("a", "own").content.into_node()).unwrap();
    let files = set(&[("a", "one"), ("b", "two")]);
    tree.add(&files).unwrap();
    assert_eq!(read(&tree, "/p/a").unwrap().1, "own");
    tree.rename((parent, b"b"), (parent, b"c")).unwrap();
    tree.add(&set(&[("b", "two")])).unwrap();
    assert_eq!((read(&tree, "/p/c").unwrap().1.as_str(), read(&tree, "/p/b")), ("two", None));
    tree.add(&Arc::default()).unwrap();
    assert_eq!(read(&tree, "/p/a").unwrap().1, "own");
}

#[test]
fn a_stored_tree_has_none_of_them_and_gets_those_of_whoever_opens_it() {
    let mut tree = Tree::new();
    tree.add(&set(&[("a", "one"), ("b", "two")])).unwrap();
    let parent = make_directories(&mut tree, b"/p").unwrap();
    tree.create(parent, b"own", file("own", "kept").content.into_node()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    tree.freeze().write_to(directory.path()).unwrap();
    let stored = FrozenTree::open(directory.path()).unwrap();
    let tree = Tree::from_frozen(stored.clone());
    assert_eq!((read(&tree, "/p/a"), read(&tree, "/p/own").unwrap().1.as_str()), (None, "kept"));
    let later = set(&[("a", "three")]);
    let tree = Tree::from_frozen(stored.with(&later).unwrap());
    assert_eq!(read(&tree, "/p/a").unwrap().1, "three");
}

#[test]
fn a_tree_with_a_file_that_is_used_goes_on_with_it_when_it_is_taken_away() {
    let mut tree = Tree::new();
    tree.add(&set(&[("a", "one")])).unwrap();
    let (ino, _) = read(&tree, "/p/a").unwrap();
    tree.retain(ino).unwrap();
    tree.add(&Arc::default()).unwrap();
    assert!(read(&tree, "/p/a").is_none() && tree.node(ino).is_some());
    tree.release(ino);
    assert!(tree.node(ino).is_none());
}
