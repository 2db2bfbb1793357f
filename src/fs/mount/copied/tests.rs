use std::{collections::VecDeque, path::Path, sync::Weak};

use proptest::prelude::*;

use super::*;
use crate::fs::{
    Files, HostDirectory, Silent,
    mount::tests::{DATA, Hooked, Moment, Picture, Step, as_guest, as_host, mounted, run, step},
};

/// What happens while a copy reads or a guest writes, if the tree is not locked.
type Meanwhile = Arc<Mutex<Option<Box<dyn FnMut(Moment) + Send>>>>;

/// A storage during whose operations that happens.
fn busy(path: &Path, meanwhile: &Meanwhile) -> Arc<dyn Storage> {
    let meanwhile = meanwhile.clone();
    let hook = move |moment| {
        // What happens meanwhile is not interrupted itself.
        let happens = meanwhile.lock().take();
        if let Some(mut happens) = happens {
            happens(moment);
            *meanwhile.lock() = Some(happens);
        }
        Ok(())
    };
    Arc::new(Hooked { inner: HostDirectory::open(path).unwrap(), hook: Arc::new(hook) })
}

/// What a frozen tree has below the data directory.
fn frozen(tree: &Mutex<Tree>) -> Picture {
    let frozen = tree.lock().freeze_stored().unwrap();
    let tree = Arc::new(Mutex::new(Tree::from_frozen(frozen)));
    let mut picture = Picture::new();
    as_guest(&mut Files::new(tree, Box::new(Silent)).unwrap(), DATA, &mut picture);
    picture
}

fn host(path: &Path) -> Picture {
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
        let mut files = mounted(busy(outer.path(), &meanwhile));
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
                        if matches!(moment, Moment::BeforeRead | Moment::AfterRead)
                            && let Some(step) = steps.pop_front() {
                            let _ = run(&mut other, &step);
                        }
                    }));
                    Tree::copy_stored(&tree).unwrap();
                    *meanwhile.lock() = None;
                }
                Event::CopyInWrite => {
                    let tree: Weak<Mutex<Tree>> = Arc::downgrade(&tree);
                    *meanwhile.lock() = Some(Box::new(move |moment| {
                        if matches!(moment, Moment::BeforeWrite | Moment::AfterWrite)
                            && let Some(tree) = tree.upgrade() {
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
