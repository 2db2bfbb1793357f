use std::{fs::OpenOptions, os::unix::fs::MetadataExt};

use super::*;
use crate::fs::{Timestamp, Tree, layout::lay_out};

mod fuzz;

fn tree_with(files: &[(&str, Content)]) -> Tree {
    let mut tree = Tree::new();
    lay_out(&mut tree).unwrap();
    for (name, content) in files {
        let node = Node::new(Kind::File(content.clone()), 0o640);
        tree.create(ROOT, name.as_bytes(), node).unwrap();
    }
    tree
}

fn content_of(tree: &Tree, name: &str) -> Vec<u8> {
    let ino = tree.lookup(ROOT, name.as_bytes()).unwrap().unwrap();
    let Kind::File(content) = &tree.node(ino).unwrap().kind else {
        panic!("{name} is no file");
    };
    let mut bytes = vec![1; usize::try_from(content.len()).unwrap()];
    content.read_at(0, &mut bytes);
    bytes
}

/// What is known of every node but the contents of files: its path, what it is, what `stat` says.
fn everything_in(tree: &Tree) -> Vec<String> {
    let (mut nodes, mut unseen) = (Vec::new(), vec![(String::new(), ROOT)]);
    while let Some((path, ino)) = unseen.pop() {
        let node = tree.node(ino).unwrap();
        let kind = match &node.kind {
            Kind::File(_) => "File".to_owned(),
            Kind::Directory(directory) => {
                for (_, entry) in directory.iter_from(0) {
                    unseen.push((format!("{path}/{}", String::from_utf8_lossy(&entry.name)), entry.ino));
                }
                format!("Directory in {:?}", directory.parent())
            }
            kind => format!("{kind:?}"),
        };
        nodes.push(format!("{path}: {kind} {:?}", node.stat(ino)));
    }
    nodes
}

#[test]
fn a_tree_comes_back_from_disk_as_it_was() {
    let mut sparse = Content::default();
    sparse.write_at(5 * CHUNK as u64 + 3, b"end");
    sparse.set_len(10 * CHUNK as u64 + 1);
    let mut tree = tree_with(&[("sparse", sparse), ("small", Content::from_extent(Extent::owned(b"abc".to_vec())))]);
    let small = tree.lookup(ROOT, b"small").unwrap().unwrap();
    tree.link(ROOT, b"second name", small).unwrap();
    tree.change(small, |node| node.attributes.modified = Timestamp { seconds: 5, nanoseconds: 7 }).unwrap();
    let directory = tempfile::tempdir().unwrap();
    tree.freeze().write_to(directory.path()).unwrap();
    let copy = Tree::from_frozen(FrozenTree::open(directory.path()).unwrap());
    for name in ["sparse", "small", "second name"] {
        assert_eq!(content_of(&copy, name), content_of(&tree, name));
    }
    assert_eq!(copy.inodes(), tree.inodes());
    let restored = everything_in(&copy);
    assert_eq!(restored, everything_in(&tree));
    for path in ["/dev/null: Device(Null)", "/dev/stdout: Symlink", "/proc/self/fd: DescriptorDirectory"] {
        assert!(restored.iter().any(|node| node.starts_with(path)), "{path}: {restored:?}");
    }
    assert_eq!(copy.private_bytes(), 0);
}

#[test]
fn holes_take_no_room_on_disk() {
    let mut sparse = Content::default();
    sparse.set_len(1 << 30);
    sparse.write_at(1 << 29, &[1]);
    let directory = tempfile::tempdir().unwrap();
    let zeros = Content::from_extent(Extent::owned(vec![0; 2 << 20]));
    tree_with(&[("sparse", sparse), ("zeros", zeros)]).freeze().write_to(directory.path()).unwrap();
    let blocks = fs::metadata(directory.path().join(DATA)).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks of 512 bytes");
}

#[test]
fn files_with_the_same_content_are_stored_once() {
    let mut padded = Content::from_extent(Extent::owned(vec![1; CHUNK]));
    padded.set_len(5 * CHUNK as u64);
    let mut moved = Content::default();
    moved.write_at(CHUNK as u64, &[1; CHUNK]);
    let owned = |bytes: Vec<u8>| Content::from_extent(Extent::owned(bytes));
    let files = [
        ("first", owned(vec![1; CHUNK])),
        ("same", owned(vec![1; CHUNK])),
        ("padded", padded),
        ("moved", moved),
        ("shorter", owned(vec![1; CHUNK - 1])),
        ("with a zero", owned([vec![1; CHUNK - 1], vec![0]].concat())),
        ("empty", Content::default()),
    ];
    let mut tree = tree_with(&files);
    let directory = tempfile::tempdir().unwrap();
    tree.freeze().write_to(directory.path()).unwrap();
    // One for the first three, two for the one that has moved, one for each of the two that follow.
    assert_eq!(fs::metadata(directory.path().join(DATA)).unwrap().len(), 5 * CHUNK as u64);
    let mut copy = Tree::from_frozen(FrozenTree::open(directory.path()).unwrap());
    for (name, _) in &files {
        assert_eq!(content_of(&copy, name), content_of(&tree, name), "{name}");
    }
    // A write to one of them is seen in no other.
    let same = copy.lookup(ROOT, b"same").unwrap().unwrap();
    let write = |node: &mut Node| {
        let Kind::File(content) = &mut node.kind else { panic!("it is no file") };
        content.write_at(0, &[2]);
    };
    copy.change(same, write).unwrap();
    assert_eq!(content_of(&copy, "same")[..2], [2, 1]);
    assert_eq!(content_of(&copy, "first"), [1; CHUNK]);
}

#[test]
fn writing_over_an_opened_store_does_not_disturb_who_has_it_open() {
    let directory = tempfile::tempdir().unwrap();
    let old = Content::from_extent(Extent::owned(vec![1; CHUNK]));
    tree_with(&[("f", old)]).freeze().write_to(directory.path()).unwrap();
    let tree = Tree::from_frozen(FrozenTree::open(directory.path()).unwrap());
    tree_with(&[]).freeze().write_to(directory.path()).unwrap();
    assert_eq!(content_of(&tree, "f"), [1; CHUNK]);
}

#[test]
fn every_kind_of_damage_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let content = Content::from_extent(Extent::owned(vec![1; 3 * CHUNK]));
    tree_with(&[("f", content)]).freeze().write_to(directory.path()).unwrap();
    let index = fs::read(directory.path().join(INDEX)).unwrap();
    let open_with = |index: &[u8]| {
        fs::write(directory.path().join(INDEX), index).unwrap();
        FrozenTree::open(directory.path()).unwrap_err()
    };
    assert!(matches!(open_with(b""), StoreError::Format));
    assert!(matches!(open_with(&[b"PGLTREE0", &index[8..]].concat()), StoreError::Format));
    assert!(matches!(open_with(&index[..index.len() - 1]), StoreError::IndexLength { .. }));
    let mut flipped = index.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(matches!(open_with(&flipped), StoreError::Checksum));
    fs::write(directory.path().join(INDEX), &index).unwrap();
    let data = OpenOptions::new().write(true).open(directory.path().join(DATA)).unwrap();
    data.set_len(CHUNK as u64).unwrap();
    let error = FrozenTree::open(directory.path()).unwrap_err();
    assert_eq!(error.to_string(), "the data of the stored files has 8192 bytes instead of 24576; prepare them again");
    fs::remove_file(directory.path().join(DATA)).unwrap();
    assert!(matches!(FrozenTree::open(directory.path()).unwrap_err(), StoreError::Io(_)));
}

#[test]
fn an_index_with_a_right_checksum_but_wrong_contents_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let node =
        |ino, kind| StoredNode { ino: Ino(ino), attributes: Node::new(Kind::Device(Device::Null), 0).attributes, kind };
    let root = |entries| node(1, StoredKind::Directory { parent: ROOT, entries });
    let open = |nodes, next| {
        let body = postcard::to_allocvec(&StoredTree { next: Ino(next), data_len: 1, nodes }).unwrap();
        let mut index = MAGIC.to_vec();
        index.extend(crc32fast::hash(&body).to_le_bytes());
        index.extend((body.len() as u64).to_le_bytes());
        index.extend(body);
        fs::write(directory.path().join(INDEX), index).unwrap();
        fs::write(directory.path().join(DATA), b"x").unwrap();
        FrozenTree::open(directory.path())
    };
    assert!(open(vec![root(vec![])], 2).is_ok());
    let outside = node(2, StoredKind::File { len: 10, start: 0, stored: 10 });
    let mut refused = vec![
        (vec![], 2),
        (vec![root(vec![]), outside], 3),
        (vec![root(vec![(b"dangling".to_vec(), Ino(7))])], 8),
        (vec![root(vec![]), root(vec![])], 2),
        (vec![root(vec![])], 1),
    ];
    let lost = node(2, StoredKind::DescriptorDirectory { parent: Ino(9) });
    refused.push((vec![root(vec![]), lost], 3));
    let in_a_file = node(3, StoredKind::Directory { parent: Ino(2), entries: vec![] });
    let file = node(2, StoredKind::File { len: 0, start: 0, stored: 0 });
    refused.push((vec![root(vec![]), file, in_a_file], 4));
    let too_short = node(2, StoredKind::File { len: 0, start: 0, stored: 1 });
    refused.push((vec![root(vec![]), too_short], 3));
    let directory = |ino, parent, entries: &[(&str, u64)]| {
        let entries = entries.iter().map(|(name, ino)| (name.as_bytes().to_vec(), Ino(*ino))).collect();
        node(ino, StoredKind::Directory { parent: Ino(parent), entries })
    };
    // Directories in each other, one with two names, one whose name is elsewhere, a root with a name.
    refused.push((vec![root(vec![]), directory(2, 3, &[("a", 3)]), directory(3, 2, &[("b", 2)])], 4));
    refused.push((vec![directory(1, 1, &[("a", 2), ("b", 2)]), directory(2, 1, &[])], 3));
    refused.push((vec![directory(1, 1, &[("a", 2), ("b", 3)]), directory(2, 3, &[]), directory(3, 1, &[])], 4));
    refused.push((vec![directory(1, 1, &[("a", 1)])], 2));
    // Names that a path would be made of.
    let long = "x".repeat(256);
    for name in ["", ".", "..", "a/b", "/", "a\0b", &long] {
        let file = node(2, StoredKind::File { len: 0, start: 0, stored: 0 });
        refused.push((vec![directory(1, 1, &[(name, 2)]), file], 3));
    }
    for (number, (nodes, next)) in refused.into_iter().enumerate() {
        let error = open(nodes, next).expect_err(&format!("case {number} was accepted"));
        assert!(matches!(error, StoreError::Inconsistent(_)), "case {number}: {error}");
    }
}

#[test]
fn a_file_of_a_terabyte_is_opened_without_its_content_being_read() {
    let mut content = Content::default();
    // No machine has the memory to read this.
    content.write_at(1 << 40, b"end");
    let directory = tempfile::tempdir().unwrap();
    tree_with(&[("large", content)]).freeze().write_to(directory.path()).unwrap();
    let tree = Tree::from_frozen(FrozenTree::open(directory.path()).unwrap());
    let ino = tree.lookup(ROOT, b"large").unwrap().unwrap();
    let Kind::File(content) = &tree.node(ino).unwrap().kind else { panic!("it is no file") };
    let mut bytes = [1; 5];
    assert_eq!(content.read_at((1 << 40) - 2, &mut bytes), 5);
    assert_eq!(&bytes, b"\0\0end");
}
