//! The baton under a model checker: all orders of its sessions' operations.
//!
//! A lost wake-up is a deadlock here, because no time passes in a model that would end the wait.

use loom::{cell::UnsafeCell, thread};

use super::*;

/// Memory for the holder of the baton, like shared memory: two accesses that the baton does not order fail the model.
#[derive(Default)]
struct Memory(UnsafeCell<Vec<u32>>);

// SAFETY: the model checker finds every access that races with another one.
unsafe impl Sync for Memory {}

impl Memory {
    fn write(&self, number: u32) {
        // SAFETY: as above.
        self.0.with_mut(|numbers| unsafe { &mut *numbers }.push(number));
    }

    fn read(&self) -> Vec<u32> {
        // SAFETY: as above.
        self.0.with(|numbers| unsafe { &*numbers }.clone())
    }
}

type Shared = Arc<(Baton, Memory)>;

fn take(baton: &Baton) -> Result<(), Crashed> {
    baton.take(&Arc::default(), Priority::Client)
}

/// Sleeps until the memory has `number`.
fn sleep(shared: &Shared, number: u32) -> Result<(), Crashed> {
    let memory = shared.clone();
    shared.0.sleep(&Arc::default(), Priority::Client, move || memory.1.read().contains(&number))
}

/// A turn that writes `number` into memory.
fn turn((baton, memory): &(Baton, Memory), number: u32) {
    take(baton).unwrap();
    memory.write(number);
    baton.give();
}

fn spawn<T: 'static>(shared: &Shared, run: impl FnOnce(&(Baton, Memory)) -> T + 'static) -> thread::JoinHandle<T> {
    let shared = shared.clone();
    thread::spawn(move || run(&shared))
}

/// Asserts that no session waits or has the baton.
fn assert_free(baton: &Baton) {
    let state = baton.state.lock();
    assert!(state.holder.is_none() && state.queue.is_empty() && state.sleepers.is_empty());
    assert!(!baton.is_wanted());
}

#[test]
fn all_get_their_turns_one_at_a_time() {
    loom::model(|| {
        let shared = Shared::default();
        let others = [1, 2].map(|number| spawn(&shared, move |shared| turn(shared, number)));
        turn(&shared, 0);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_free(&shared.0);
        let mut numbers = shared.1.read();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
    });
}

#[test]
fn turns_come_in_the_order_in_which_they_were_asked_for_whoever_comes_late() {
    loom::model(|| {
        let shared = Shared::default();
        let (baton, memory) = &*shared;
        take(baton).unwrap();
        let [first, second] = [1, 2].map(|number| {
            let holder = Holder::new(&Arc::default(), Priority::Client);
            let (waiter, holder) = baton.ask(holder).unwrap().expect("it is not free");
            spawn(&shared, move |(baton, memory)| {
                baton.wait(&waiter, holder, Manners::Queues).unwrap();
                memory.write(number);
                baton.give();
            })
        });
        memory.write(0);
        baton.give();
        turn(&shared, 3);
        [first, second].into_iter().for_each(|other| other.join().unwrap());
        assert_free(baton);
        assert_eq!(memory.read(), [0, 1, 2, 3]);
    });
}

#[test]
fn a_session_that_sleeps_goes_on_after_the_turn_that_ends_its_sleep() {
    loom::model(|| {
        let shared = Shared::default();
        let (baton, memory) = &*shared;
        take(baton).unwrap();
        let other = spawn(&shared, |shared| {
            turn(shared, 1);
            turn(shared, 2);
        });
        sleep(&shared, 2).unwrap();
        assert_eq!(memory.read(), [1, 2]);
        memory.write(3);
        baton.give();
        other.join().unwrap();
        assert_free(baton);
    });
}

#[test]
fn a_turn_that_was_lent_comes_back_after_the_others() {
    loom::model(|| {
        let shared = Shared::default();
        let (baton, memory) = &*shared;
        take(baton).unwrap();
        let other = spawn(&shared, |shared| turn(shared, 1));
        baton.lend(&Arc::default(), Priority::Client).unwrap();
        memory.write(2);
        baton.give();
        other.join().unwrap();
        assert_free(baton);
        assert_eq!(memory.read().len(), 2);
    });
}

#[test]
fn sessions_that_sleep_go_on_one_after_the_other() {
    loom::model(|| {
        let shared = Shared::default();
        let (baton, memory) = &*shared;
        take(baton).unwrap();
        let other = spawn(&shared, |shared| {
            take(&shared.0).unwrap();
            let slept = shared.0.sleep(&Arc::default(), Priority::Client, || true);
            shared.1.write(2);
            shared.0.give();
            slept
        });
        baton.sleep(&Arc::default(), Priority::Client, || true).unwrap();
        memory.write(1);
        baton.give();
        assert_eq!(other.join().unwrap(), Ok(()));
        assert_free(baton);
        assert_eq!(memory.read().len(), 2);
    });
}

#[test]
fn a_crash_ends_every_wait() {
    loom::model(|| {
        let shared = Shared::default();
        take(&shared.0).unwrap();
        let waiters = [(); 2].map(|()| spawn(&shared, |(baton, _)| take(baton)));
        shared.0.crash();
        assert_eq!(waiters.map(|waiter| waiter.join().unwrap()), [Err(Crashed); 2]);
        assert_free(&shared.0);
    });
}

#[test]
fn a_crash_in_the_turn_that_was_waited_for_ends_the_sleep() {
    loom::model(|| {
        let shared = Shared::default();
        take(&shared.0).unwrap();
        let crashing = spawn(&shared, |(baton, _)| take(baton).map(|()| baton.crash()));
        assert_eq!(sleep(&shared, 1), Err(Crashed));
        assert_eq!(crashing.join().unwrap(), Ok(()));
    });
}
