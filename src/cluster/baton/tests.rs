use std::{
    sync::{atomic::AtomicBool, mpsc},
    thread,
};

use super::*;

fn wait_until_queued(baton: &Baton, count: usize) {
    while baton.waiting.load(Ordering::SeqCst) != count {
        thread::yield_now();
    }
}

#[test]
fn sessions_come_in_the_order_in_which_they_asked() {
    let (baton, signals) = (Arc::new(Baton::default()), Arc::new(Signals::default()));
    baton.take(&signals, Priority::Client).unwrap();
    let (came, order) = mpsc::channel();
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let (waiter, came) = (baton.clone(), came.clone());
            let thread = thread::spawn(move || {
                waiter.take(&Arc::default(), Priority::Client).unwrap();
                came.send(number).unwrap();
                waiter.give();
            });
            wait_until_queued(&baton, number + 1);
            thread
        })
        .collect();
    baton.give();
    assert_eq!(order.iter().take(4).collect::<Vec<_>>(), [0, 1, 2, 3]);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(!baton.is_wanted());
}

/// A session, and its interrupts.
fn interruptible(priority: Priority) -> (Holder, mpsc::Receiver<()>) {
    let (interrupted, interrupts) = mpsc::channel();
    let holder = holder(priority);
    holder.signals.set_waker(Some(crate::client::Waker::new(move || {
        let _ = interrupted.send(());
    })));
    (holder, interrupts)
}

/// A baton whose holder has that priority, and the holder's interrupts.
fn held(priority: Priority) -> (Arc<Baton>, mpsc::Receiver<()>) {
    let (baton, (holder, interrupts)) = (Arc::new(Baton::default()), interruptible(priority));
    assert!(baton.ask(holder).unwrap().is_none(), "it is free");
    (baton, interrupts)
}

fn holder(priority: Priority) -> Holder {
    Holder::new(&Arc::default(), priority)
}

#[test]
fn a_client_is_interrupted_when_somebody_waits_longer_than_a_slice_and_not_when_somebody_asks() {
    for priority in [Priority::Client, Priority::Background] {
        let (baton, interrupts) = held(Priority::Client);
        let (place, asking) = baton.ask(holder(priority)).unwrap().expect("it is held");
        assert_eq!(interrupts.try_recv(), Err(mpsc::TryRecvError::Empty), "{priority:?}");
        let waiter = {
            let baton = baton.clone();
            thread::spawn(move || baton.wait(&place, asking, Manners::Queues).map(|()| baton.give()))
        };
        assert_eq!(interrupts.recv_timeout(Duration::from_mins(1)), Ok(()), "{priority:?}");
        baton.give();
        waiter.join().unwrap().unwrap();
    }
}

#[test]
fn a_process_of_the_cluster_is_interrupted_as_soon_as_somebody_asks() {
    for priority in [Priority::Client, Priority::Background] {
        let (baton, interrupts) = held(Priority::Background);
        assert!(baton.ask(holder(priority)).unwrap().is_some());
        assert_eq!(interrupts.try_recv(), Ok(()), "{priority:?}");
    }
}

#[test]
fn a_session_that_sleeps_has_no_turn_before_another_one_has_ended_its_sleep() {
    let (baton, turns) = (Arc::new(Baton::default()), Arc::new(AtomicUsize::default()));
    let is_over = Arc::new(AtomicBool::default());
    baton.take(&Arc::default(), Priority::Client).unwrap();
    let sleeper = {
        let (baton, is_over, turns) = (baton.clone(), is_over.clone(), turns.clone());
        thread::spawn(move || {
            baton.sleep(&Arc::default(), Priority::Client, move || is_over.load(Ordering::SeqCst))?;
            let seen = turns.load(Ordering::SeqCst);
            baton.give();
            Ok::<_, Crashed>(seen)
        })
    };
    // It gives the baton to these turns, which are the only ones until one has ended its sleep.
    for turn in 1..=3 {
        baton.take(&Arc::default(), Priority::Client).unwrap();
        turns.store(turn, Ordering::SeqCst);
        is_over.store(turn == 3, Ordering::SeqCst);
        baton.give();
    }
    assert_eq!(sleeper.join().unwrap(), Ok(3));
    assert!(!baton.is_wanted());
}

#[test]
fn a_session_that_sleeps_watches_no_clock_before_it_is_the_first_in_the_queue() {
    let waiter = Waiter::new(Place::Asleep);
    let (told, looks) = mpsc::channel();
    let thread = {
        let waiter = waiter.clone();
        thread::spawn(move || {
            while !waiter.wait(Slice::default().0) {
                let _ = told.send(());
            }
        })
    };
    assert_eq!(looks.recv_timeout(Slice::default().0 * 20), Err(mpsc::RecvTimeoutError::Timeout));
    waiter.watch();
    assert_eq!(looks.recv_timeout(Duration::from_mins(1)), Ok(()));
    waiter.call();
    thread.join().unwrap();
}

#[test]
fn a_holder_is_interrupted_by_a_session_that_has_slept() {
    let baton = Arc::new(Baton::default());
    baton.take(&Arc::default(), Priority::Client).unwrap();
    let (busy, interrupts) = interruptible(Priority::Client);
    let (place, busy) = baton.ask(busy).unwrap().expect("it is held");
    let sleeper = {
        let baton = baton.clone();
        // Its sleep is over at once, and then it waits for the busy one.
        thread::spawn(move || baton.sleep(&Arc::default(), Priority::Client, || true).map(|()| baton.give()))
    };
    baton.wait(&place, busy, Manners::Queues).unwrap();
    assert_eq!(interrupts.recv_timeout(Duration::from_mins(1)), Ok(()));
    baton.give();
    sleeper.join().unwrap().unwrap();
}

#[test]
fn a_turn_that_was_lent_comes_back_before_those_that_wait_when_the_holder_has_had_a_slice() {
    let (baton, signals) = (Arc::new(Baton::default()), Arc::new(Signals::default()));
    baton.take(&signals, Priority::Client).unwrap();
    let (busy, interrupts) = interruptible(Priority::Client);
    let (place, busy) = baton.ask(busy).unwrap().expect("it is held");
    let (patient, patiently) = baton.ask(holder(Priority::Client)).unwrap().expect("it is held");
    let (came, order) = mpsc::channel();
    let lender = {
        let (baton, came) = (baton.clone(), came.clone());
        thread::spawn(move || {
            baton.lend(&signals, Priority::Client).unwrap();
            came.send("lender").unwrap();
            baton.give();
        })
    };
    baton.wait(&place, busy, Manners::Queues).unwrap();
    // The thread of the patient one does not run yet, so only the lender interrupts.
    assert_eq!(interrupts.recv_timeout(Duration::from_mins(1)), Ok(()));
    let other = {
        let baton = baton.clone();
        thread::spawn(move || {
            baton.wait(&patient, patiently, Manners::Queues).unwrap();
            came.send("patient").unwrap();
            baton.give();
        })
    };
    baton.give();
    assert_eq!(order.iter().take(2).collect::<Vec<_>>(), ["lender", "patient"]);
    [lender, other].into_iter().for_each(|thread| thread.join().unwrap());
    assert!(!baton.is_wanted());
}

#[test]
fn after_a_crash_nobody_gets_a_turn() {
    let (baton, signals) = (Arc::new(Baton::default()), Arc::new(Signals::default()));
    baton.take(&signals, Priority::Client).unwrap();
    let waiter = {
        let baton = baton.clone();
        thread::spawn(move || baton.take(&Arc::default(), Priority::Client))
    };
    wait_until_queued(&baton, 1);
    baton.crash();
    assert_eq!(waiter.join().unwrap(), Err(Crashed));
    assert_eq!(baton.take(&signals, Priority::Client), Err(Crashed));
}
