//! An index with a right checksum, whose content is damaged.

use super::*;
use crate::fuzz::{Corpus, Input, fuzz};

/// The data of every tree here, in bytes.
const LENGTH: usize = 3 * CHUNK;

fn encoded(mut tree: Tree) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    tree.freeze().write_to(directory.path()).unwrap();
    fs::read(directory.path().join(INDEX)).unwrap()[HEADER..].to_vec()
}

/// Indexes of small trees, without headers.
fn corpus() -> Corpus {
    let content = || Content::from_extent(Extent::owned(vec![1; CHUNK]));
    let mut deep = Tree::new();
    let mut parent = ROOT;
    for name in [&b"a"[..], b"b", b"c"] {
        parent = deep.create(parent, name, Node::new(Kind::Directory(Directory::new(parent)), 0o700)).unwrap();
    }
    deep.create(parent, b"file", Node::new(Kind::File(content()), 0o600)).unwrap();
    deep.create(ROOT, b"link", Node::new(Kind::Symlink(Arc::from(&b"a/b"[..])), 0o777)).unwrap();
    // Two directories in each other, which no path leads to.
    let node = |ino, parent, entries: &[u64]| StoredNode {
        ino: Ino(ino),
        attributes: Node::new(Kind::Device(Device::Null), 0o700).attributes,
        kind: StoredKind::Directory {
            parent: Ino(parent),
            entries: entries.iter().map(|entry| (b"d".to_vec(), Ino(*entry))).collect(),
        },
    };
    let nodes = vec![node(1, 1, &[]), node(2, 3, &[3]), node(3, 2, &[2])];
    let loose = StoredTree { next: Ino(4), data_len: LENGTH as u64, nodes };
    Corpus::made([
        postcard::to_allocvec(&loose).unwrap(),
        encoded(deep),
        encoded(tree_with(&[("one", content()), ("two", content())])),
    ])
}

/// A tree that is restored is one: its directories have paths that lead to them, and its files can be read and written.
fn check(input: &Input) {
    let mut index = MAGIC.to_vec();
    index.extend(crc32fast::hash(&input.bytes).to_le_bytes());
    index.extend((input.bytes.len() as u64).to_le_bytes());
    index.extend(&input.bytes);
    let Ok(stored) = read_index(&index) else { return };
    let source = Arc::new(Source::Owned(vec![7; LENGTH]));
    let Ok(frozen) = FrozenTree::restored(stored, &source) else { return };
    let count = frozen.len();
    let inodes: Vec<Ino> = frozen.nodes.keys().copied().collect();
    let mut tree = Tree::from_frozen(Arc::new(frozen));
    let (mut seen, mut unseen) = (HashSet::new(), vec![(Vec::new(), ROOT)]);
    while let Some((path, ino)) = unseen.pop() {
        let node = tree.node(ino).expect("it has a name").clone();
        let _ = (node.stat(ino), tree.path_of(ino));
        let is_new = seen.insert(ino);
        match &node.kind {
            Kind::Directory(directory) => {
                assert!(is_new, "a directory has one name");
                let expected = if ino == ROOT { b"/".to_vec() } else { path.clone() };
                assert_eq!(tree.path_of_directory(ino), Some(expected));
                for (_, entry) in directory.iter_from(0) {
                    unseen.push(([&path[..], b"/", &entry.name].concat(), entry.ino));
                }
            }
            Kind::File(content) if is_new => {
                let mut buffer = [1; 100];
                for place in [0, content.len() / 2, content.len().saturating_sub(50)] {
                    content.read_at(place, &mut buffer);
                }
                let changed = tree.change(ino, |node| {
                    let Kind::File(content) = &mut node.kind else { panic!("it is a file") };
                    content.write_at(0, b"start");
                    content.set_len(CHUNK as u64 + 1);
                    content.len()
                });
                assert_eq!(changed, Ok(CHUNK as u64 + 1));
            }
            _ => {}
        }
    }
    assert!(seen.len() <= count);
    // Those without a name have no path, and looking for it has an end.
    for ino in inodes {
        assert!(seen.contains(&ino) || tree.path_of(ino).is_none());
    }
    let _ = tree.create(ROOT, b"new", Node::new(Kind::File(Content::default()), 0o600));
    tree.freeze();
}

#[test]
fn a_damaged_index_is_refused_or_a_tree() {
    fuzz!(corpus(), check);
}
