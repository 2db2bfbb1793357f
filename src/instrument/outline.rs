//! Makes a function of its own of `PerformAuthentication` (`PostgreSQL`, `src/backend/utils/init/postinit.c`), which the
//! compiler has put into `InitPostgres` with everything that it calls.
//!
//! A backend that was started alone is past its `InitPostgres` when its client comes; the host calls the function then.
//! `InitPostgres` itself calls it where its instructions were, so both kinds of sessions run the same code:
//!
//! ```wat
//! (func $PerformAuthentication (local …)   ;; the parameters and locals of InitPostgres
//!   …                                      ;; the frame of InitPostgres on the stack in memory
//!   (if (i32.eqz (call $client_is_trusted))
//!     (then …                              ;; the instructions
//!       (call $client_authenticated)))
//!   …)                                     ;; the frame is removed
//! ```

use std::collections::BTreeSet;
use std::ops::Range;

use wasmparser::{BlockType, Operator};

use super::InstrumentError;
use super::bodies::once;
use super::target::Target;

/// Instructions of a function that become a function of their own, without parameters and results.
pub(super) struct Outline {
    /// The function that they are in.
    pub(super) function: u32,
    /// Where in it they are.
    pub(super) region: Range<usize>,
    pub(super) frame: Frame,
}

/// The first instructions of a function, which take memory from the stack in memory.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    /// The global with the stack pointer, and the local that keeps it.
    pub(super) stack_pointer: u32,
    pub(super) local: u32,
    /// Its size in bytes.
    pub(super) size: i32,
}

impl Frame {
    /// How many instructions it is.
    const LENGTH: usize = 5;

    fn read(target: &Target, operators: &[Operator]) -> Result<Self, InstrumentError> {
        match *operators {
            [
                Operator::GlobalGet { global_index: stack_pointer },
                Operator::I32Const { value: size },
                Operator::I32Sub,
                Operator::LocalTee { local_index: local },
                Operator::GlobalSet { global_index },
                ..,
            ] if global_index == stack_pointer => Ok(Self { stack_pointer, local, size }),
            _ => Err(target.refusal("one that does not begin with its frame")),
        }
    }
}

impl Outline {
    /// The instructions from `ClientAuthInProgress = true`, which precedes the first use of `MyProcPort`, to
    /// `ClientAuthInProgress = false`.
    ///
    /// # Errors
    /// If there is not one such region, or it depends on more of the function than its frame: if it jumps out of
    /// itself or returns, reads a variable that was set before it, or sets one that is read after it; or if it is in
    /// a loop.
    pub(super) fn authentication(
        target: &Target,
        function: u32,
        parameters: u32,
        operators: &[Operator],
        my_proc_port: u32,
    ) -> Result<Self, InstrumentError> {
        let frame = Frame::read(target, operators)?;
        let begins = |window: &[Operator]| match *window {
            [
                Operator::I32Const { value: flag },
                Operator::I32Const { value: 1 },
                Operator::I32Store8 { memarg },
                Operator::I32Const { value: port },
                Operator::I32Load { .. },
            ] if memarg.offset == 0 && port.cast_unsigned() == my_proc_port => Some(flag),
            _ => None,
        };
        let (start, flag) = once(target, "an authentication that begins", operators, 5, begins)?;
        let ends = |window: &[Operator]| match *window {
            [Operator::I32Const { value }, Operator::I32Const { value: 0 }, Operator::I32Store8 { memarg }]
                if memarg.offset == 0 && value == flag =>
            {
                Some(())
            }
            _ => None,
        };
        let end = once(target, "an authentication that ends", operators, 3, ends)?.0 + 3;
        let region = start..end;
        let depends = |how: &str| Err(target.refusal(&format!("one whose authentication {how}")));
        if start < Frame::LENGTH || start >= end || !is_closed(&operators[region.clone()]) {
            return depends("is not a block that is left at its end only");
        }
        if is_in_loop(&operators[..start]) {
            return depends("is in a loop");
        }
        let (before, inside, after) = (&operators[..start], &operators[region.clone()], &operators[end..]);
        let set_before: BTreeSet<u32> = (0..parameters).chain(set(before)).collect();
        if read_first(inside).iter().any(|local| *local != frame.local && set_before.contains(local)) {
            return depends("reads a variable that is set before it");
        }
        let set_inside: BTreeSet<u32> = set(inside).collect();
        if set_inside.contains(&frame.local) || !read_first(after).is_disjoint(&set_inside) {
            return depends("sets a variable that is read after it");
        }
        Ok(Self { function, region, frame })
    }
}

/// Whether each of these blocks ends here, and no instruction leaves them.
pub(super) fn is_closed(operators: &[Operator]) -> bool {
    let mut depth = 0_u32;
    for operator in operators {
        let leaves = |label: u32| label >= depth;
        match operator {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => depth += 1,
            Operator::End => match depth.checked_sub(1) {
                Some(outer) => depth = outer,
                None => return false,
            },
            Operator::Else if depth == 0 => return false,
            Operator::Br { relative_depth } | Operator::BrIf { relative_depth } if leaves(*relative_depth) => {
                return false;
            }
            Operator::BrTable { targets } => {
                let labels = targets.targets().chain([Ok(targets.default())]);
                if !labels.into_iter().all(|label| label.is_ok_and(|label| !leaves(label))) {
                    return false;
                }
            }
            Operator::Return | Operator::ReturnCall { .. } | Operator::ReturnCallIndirect { .. } => return false,
            _ => {}
        }
    }
    depth == 0
}

/// Whether one of the blocks that are open after these instructions can be repeated, or has a value.
fn is_in_loop(operators: &[Operator]) -> bool {
    let mut open = Vec::new();
    for operator in operators {
        match operator {
            Operator::Block { blockty } | Operator::If { blockty } => open.push(*blockty != BlockType::Empty),
            Operator::Loop { .. } => open.push(true),
            Operator::End => drop(open.pop()),
            _ => {}
        }
    }
    open.contains(&true)
}

/// The locals that are set.
pub(super) fn set(operators: &[Operator]) -> impl Iterator<Item = u32> {
    operators.iter().filter_map(|operator| match operator {
        Operator::LocalSet { local_index } | Operator::LocalTee { local_index } => Some(*local_index),
        _ => None,
    })
}

/// The locals whose first use, in the order of the instructions, is a read.
pub(super) fn read_first(operators: &[Operator]) -> BTreeSet<u32> {
    let (mut seen, mut read) = (BTreeSet::new(), BTreeSet::new());
    for operator in operators {
        match operator {
            Operator::LocalGet { local_index } if seen.insert(*local_index) => {
                read.insert(*local_index);
            }
            Operator::LocalSet { local_index } | Operator::LocalTee { local_index } => {
                seen.insert(*local_index);
            }
            _ => {}
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: Operator = Operator::LocalSet { local_index: 3 };
    const GET: Operator = Operator::LocalGet { local_index: 3 };
    const BLOCK: Operator = Operator::Block { blockty: BlockType::Empty };
    const LOOP: Operator = Operator::Loop { blockty: BlockType::Empty };

    fn branch(relative_depth: u32) -> Operator<'static> {
        Operator::Br { relative_depth }
    }

    #[test]
    fn instructions_that_are_left_elsewhere_than_at_their_end_are_no_function() {
        for closed in
            [&[][..], &[BLOCK, branch(0), Operator::End], &[BLOCK, LOOP, branch(1), Operator::End, Operator::End]]
        {
            assert!(is_closed(closed), "{closed:?}");
        }
        for open in [
            &[branch(0)][..],
            &[BLOCK, branch(1), Operator::End],
            &[BLOCK, Operator::Return, Operator::End],
            &[BLOCK],
            &[Operator::End],
            &[Operator::Else],
        ] {
            assert!(!is_closed(open), "{open:?}");
        }
    }

    #[test]
    fn a_loop_around_a_place_is_seen_and_one_before_it_is_not() {
        assert!(is_in_loop(&[BLOCK, LOOP]));
        assert!(!is_in_loop(&[LOOP, Operator::End, BLOCK]));
    }

    #[test]
    fn a_variable_that_is_read_before_it_is_set_is_told_from_one_that_is_set_first() {
        assert_eq!(read_first(&[SET, GET]), BTreeSet::new());
        assert_eq!(read_first(&[GET, SET]), BTreeSet::from([3]));
        assert_eq!(set(&[GET, SET]).collect::<Vec<_>>(), [3]);
    }
}
