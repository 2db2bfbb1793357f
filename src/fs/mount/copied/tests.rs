use std::{collections::VecDeque, io, sync::Weak};

use proptest::prelude::*;

use super::*;
use crate::fs::{
    Files, HostDirectory, Silent, StoredEntry,
    mount::tests::{DATA, Picture, Step, as_guest, as_host, mounted, run, step},
};

/// What happens while a copy reads or a guest writes, if the tree is not locked.
type Meanwhile = Arc<Mutex<Option<Box<dyn FnMut(Moment) + Send>>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Read,
    Write,
}

/// A storage during whose operations something else happens.
struct Busy {
    directory: HostDirectory,
    meanwhile: Meanwhile,
}

impl std::fmt::Debug for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Busy")
    }
}

macro_rules! forward {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($argument: $type),*) -> io::Result<$result> { self.directory.$name($($argument),*) })*
    };
}

impl Storage for Busy {
    fn open(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>> {
        Ok(Arc::new(BusyFile { file: self.directory.open(path)?, meanwhile: self.meanwhile.clone() }))
    }

    fn create(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>> {
        Ok(Arc::new(BusyFile { file: self.directory.create(path)?, meanwhile: self.meanwhile.clone() }))
    }

    forward! {
        create_directory(path: &[u8]) -> ();
        create_symlink(path: &[u8], target: &[u8]) -> ();
        unlink(path: &[u8]) -> ();
        remove_directory(path: &[u8]) -> ();
        rename(from: &[u8], to: &[u8]) -> ();
        sync_directory(path: &[u8]) -> ();
        list(path: &[u8]) -> Vec<StoredEntry>;
    }
}

struct BusyFile {
    file: Arc<dyn StoredFile>,
    meanwhile: Meanwhile,
}

impl std::fmt::Debug for BusyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BusyFile")
    }
}

impl BusyFile {
    fn interrupted(&self, moment: Moment) {
        // What happens meanwhile is not interrupted itself.
        let meanwhile = self.meanwhile.lock().take();
        if let Some(mut happens) = meanwhile {
            happens(moment);
            *self.meanwhile.lock() = Some(happens);
        }
    }
}

impl StoredFile for BusyFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupted(Moment::Read);
        let read = self.file.read_at(offset, buffer);
        self.interrupted(Moment::Read);
        read
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.interrupted(Moment::Write);
        let written = self.file.write_at(offset, bytes);
        self.interrupted(Moment::Write);
        written
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, from: u64, end: u64) -> io::Result<()> {
        self.file.allocate(from, end)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

/// What a frozen tree has below the data directory.
fn frozen(tree: &Mutex<Tree>) -> Picture {
    let frozen = tree.lock().freeze_stored().unwrap();
    let tree = Arc::new(Mutex::new(Tree::from_frozen(frozen)));
    let mut picture = Picture::new();
    as_guest(&mut Files::new(tree, Box::new(Silent)).unwrap(), DATA, &mut picture);
    picture
}

fn host(path: &std::path::Path) -> Picture {
    let mut picture = Picture::new();
    as_host(path, path, &mut picture);
    picture
}

#[derive(Clone, Debug)]
enum Event {
    Step(Step),
    /// The files are copied, and those steps are done by another process while they are read.
    Copy(VecDeque<Step>),
    /// A copy begins in the middle of the next write.
    CopyInWrite,
    Freeze,
    Forget,
}

/// Changes of the contents of one file, of a few chunks.
fn change() -> impl Strategy<Value = Step> {
    let (name, place) = (9, 0_u16..20_000);
    prop_oneof![
        (place.clone(), prop::collection::vec(any::<u8>(), 0..9000)).prop_map(move |(offset, bytes)| Step::Write {
            name,
            offset,
            bytes
        }),
        place.clone().prop_map(move |len| Step::Truncate { name, len }),
        place.prop_map(move |end| Step::Allocate { name, end }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => step().prop_map(Event::Step),
        5 => change().prop_map(Event::Step),
        2 => prop::collection::vec_deque(prop_oneof![step(), change()], 0..6).prop_map(Event::Copy),
        1 => Just(Event::CopyInWrite),
        2 => Just(Event::Freeze),
        1 => Just(Event::Forget),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_frozen_tree_has_what_is_in_the_storage_whatever_happened_while_it_was_copied(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let outer = tempfile::tempdir().unwrap();
        let meanwhile = Meanwhile::default();
        let directory = HostDirectory::open(outer.path()).unwrap();
        let mut files = mounted(Arc::new(Busy { directory, meanwhile: meanwhile.clone() }));
        let tree = files.tree().clone();
        for event in events {
            match event {
                // Errors are a part of what may happen.
                Event::Step(step) => {
                    let _ = run(&mut files, &step);
                }
                Event::Copy(mut steps) => {
                    let mut other = Files::new(tree.clone(), Box::new(Silent)).unwrap();
                    *meanwhile.lock() = Some(Box::new(move |moment| {
                        if moment == Moment::Read && let Some(step) = steps.pop_front() {
                            let _ = run(&mut other, &step);
                        }
                    }));
                    Tree::copy_stored(&tree).unwrap();
                    *meanwhile.lock() = None;
                }
                Event::CopyInWrite => {
                    let tree: Weak<Mutex<Tree>> = Arc::downgrade(&tree);
                    *meanwhile.lock() = Some(Box::new(move |moment| {
                        if moment == Moment::Write && let Some(tree) = tree.upgrade() {
                            Tree::copy_stored(&tree).unwrap();
                        }
                    }));
                }
                Event::Freeze => {
                    *meanwhile.lock() = None;
                    prop_assert_eq!(frozen(&tree), host(outer.path()));
                }
                Event::Forget => tree.lock().forget_copy(),
            }
        }
        *meanwhile.lock() = None;
        prop_assert_eq!(frozen(&tree), host(outer.path()));
        prop_assert_eq!(frozen(&tree), host(outer.path()), "without further changes");
    }
}
