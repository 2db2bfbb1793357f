//! The chunks of a frozen file by their numbers, in groups that contents share. When a large file is frozen again, the
//! groups in which nothing has changed are not copied.

use std::{collections::BTreeMap, mem, sync::Arc};

use super::chunk::Chunk;

/// A chunk that clones of a content share; its bytes after the end of the file are zero.
pub(super) type SharedChunk = Arc<Chunk>;

/// How many numbers a group has: those of 4 MiB of a file.
const GROUP: u64 = 512;

/// Chunks by their numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Chunks(BTreeMap<u64, Arc<BTreeMap<u64, SharedChunk>>>);

impl Chunks {
    pub(super) fn get(&self, number: u64) -> Option<&SharedChunk> {
        self.0.get(&(number / GROUP))?.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut SharedChunk> {
        let group = self.0.get_mut(&(number / GROUP))?;
        if group.contains_key(&number) { Arc::make_mut(group).get_mut(&number) } else { None }
    }

    /// Removes the chunks from number `end` on.
    pub(super) fn truncate(&mut self, end: u64) {
        drop(self.0.split_off(&end.div_ceil(GROUP)));
        let Some(mut last) = self.0.last_entry().filter(|last| *last.key() == end / GROUP) else { return };
        if last.get().range(end..).next().is_some() {
            drop(Arc::make_mut(last.get_mut()).split_off(&end));
        }
        if last.get().is_empty() {
            last.remove();
        }
    }

    /// Moves `changed` here, in the place of those with the same numbers.
    pub(super) fn append(&mut self, changed: &mut BTreeMap<u64, SharedChunk>) {
        let mut changed = mem::take(changed).into_iter().peekable();
        while let Some((number, chunk)) = changed.next() {
            let group = Arc::make_mut(self.0.entry(number / GROUP).or_default());
            group.insert(number, chunk);
            while let Some((next, chunk)) = changed.next_if(|(next, _)| next / GROUP == number / GROUP) {
                group.insert(next, chunk);
            }
        }
    }

    /// The numbers below `end`, in ascending order.
    pub(super) fn numbers(&self, end: u64) -> impl Iterator<Item = u64> {
        let groups = self.0.range(..end.div_ceil(GROUP));
        groups.flat_map(|(_, group)| group.keys().copied()).take_while(move |number| *number < end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::chunk::CHUNK, *};

    #[derive(Clone, Debug)]
    enum Step {
        Append(Vec<(u64, u8)>),
        Change(u64, u8),
        Truncate(u64),
        /// A clone is made, which later steps must not change.
        Clone,
    }

    fn step() -> impl Strategy<Value = Step> {
        // Numbers at both ends of groups.
        let number = || (0..4_u64, prop_oneof![0..4_u64, GROUP - 4..GROUP]).prop_map(|(group, at)| group * GROUP + at);
        prop_oneof![
            4 => prop::collection::vec((number(), any::<u8>()), 0..8).prop_map(Step::Append),
            2 => (number(), any::<u8>()).prop_map(|(number, byte)| Step::Change(number, byte)),
            2 => number().prop_map(Step::Truncate),
            1 => Just(Step::Clone),
        ]
    }

    fn chunk(byte: u8) -> SharedChunk {
        Arc::new(Chunk::new(&[byte; CHUNK]))
    }

    fn compare(chunks: &Chunks, model: &BTreeMap<u64, u8>) -> Result<(), TestCaseError> {
        let numbers: Vec<u64> = chunks.numbers(u64::MAX).collect();
        prop_assert_eq!(&numbers, &model.keys().copied().collect::<Vec<_>>());
        for number in 0..4 * GROUP {
            let found = chunks.get(number).map(|chunk| chunk[0]);
            prop_assert_eq!(found, model.get(&number).copied());
        }
        prop_assert!(chunks.0.values().all(|group| !group.is_empty()));
        Ok(())
    }

    proptest! {
        #[test]
        fn they_are_as_a_map_and_clones_do_not_change(steps in prop::collection::vec(step(), 1..20)) {
            let (mut chunks, mut model) = (Chunks::default(), BTreeMap::new());
            let mut clones = Vec::new();
            for step in steps {
                match step {
                    Step::Append(changed) => {
                        model.extend(changed.iter().copied());
                        chunks.append(&mut changed.into_iter().map(|(number, byte)| (number, chunk(byte))).collect());
                    }
                    Step::Change(number, byte) => {
                        let found = chunks.get_mut(number).map(|found| *found = chunk(byte));
                        prop_assert_eq!(found, model.get_mut(&number).map(|found| *found = byte));
                    }
                    Step::Truncate(end) => {
                        drop(model.split_off(&end));
                        chunks.truncate(end);
                        prop_assert_eq!(chunks.numbers(end + 1).count(), model.len());
                    }
                    Step::Clone => clones.push((chunks.clone(), model.clone())),
                }
            }
            clones.push((chunks, model));
            for (chunks, model) in clones {
                compare(&chunks, &model)?;
            }
        }
    }
}
