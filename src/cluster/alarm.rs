//! A thread that waits for deadlines of backends: of the guests' timers, and of signals that were not heard.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Weak},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{Signal, Signals};

/// How long a condemned backend goes on until it is stopped again, if it did not end at the safepoint.
const AGAIN: Duration = Duration::from_millis(20);

/// What happens at a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The guest's timer of that number is due: the backend is interrupted, and its hooks find the timer.
    Timer(usize),
    /// The backend has had [`Slice::until_overdue`](super::Slice::until_overdue) for a signal.
    Overdue(Signal),
    /// It has had [`Slice::until_condemned`](super::Slice::until_condemned).
    Condemned(Signal),
}

/// The deadlines of all backends.
struct Alarm {
    /// The signals to interrupt, by deadline and the address of the signals.
    waiting: Mutex<BTreeMap<(Instant, usize, Due), Weak<Signals>>>,
    changed: Condvar,
}

static ALARM: LazyLock<&'static Alarm> = LazyLock::new(|| {
    let alarm: &'static Alarm = Box::leak(Box::new(Alarm { waiting: Mutex::default(), changed: Condvar::new() }));
    let spawned = thread::Builder::new().name("alarm".into()).stack_size(64 << 10).spawn(|| alarm.run());
    if let Err(error) = spawned {
        tracing::error!(
            "timeouts take effect only between queries, because the thread for timers cannot be started: {error}"
        );
    }
    alarm
});

/// Interrupts the backend behind `signals` at `deadline`, when its timer `number` is due.
pub(crate) fn set(deadline: Instant, number: usize, signals: &Arc<Signals>) {
    ALARM.set(deadline, Due::Timer(number), signals);
}

/// Removes the deadline of a timer if it has not passed. A timeout that is set for every statement must not stay until
/// it would be due.
pub(crate) fn withdraw(deadline: Instant, number: usize, signals: &Arc<Signals>) {
    ALARM.waiting.lock().remove(&(deadline, Arc::as_ptr(signals).addr(), Due::Timer(number)));
}

/// Sees to it that the backend behind `signals` hears `signal`, which it was just sent.
pub(super) fn watch(signals: &Arc<Signals>, signal: Signal) {
    let now = Instant::now();
    ALARM.set(now + signals.slice.until_overdue(), Due::Overdue(signal), signals);
    ALARM.set(now + signals.slice.until_condemned(), Due::Condemned(signal), signals);
}

impl Alarm {
    fn set(&self, deadline: Instant, due: Due, signals: &Arc<Signals>) {
        let mut waiting = self.waiting.lock();
        let is_next = waiting.first_key_value().is_none_or(|((next, ..), _)| deadline < *next);
        waiting.insert((deadline, Arc::as_ptr(signals).addr(), due), Arc::downgrade(signals));
        if is_next {
            self.changed.notify_one();
        }
    }

    fn run(&self) {
        let mut waiting = self.waiting.lock();
        loop {
            let Some(&next) = waiting.keys().next() else {
                self.changed.wait(&mut waiting);
                continue;
            };
            let (deadline, address, due) = next;
            if !self.changed.wait_until(&mut waiting, deadline).timed_out() {
                continue;
            }
            let Some(signals) = waiting.remove(&next).and_then(|signals| signals.upgrade()) else { continue };
            match due {
                Due::Timer(_) => {
                    signals.send(Signal::ALRM);
                    let overdue = Instant::now() + signals.slice.until_overdue();
                    waiting.insert((overdue, address, Due::Overdue(Signal::ALRM)), Arc::downgrade(&signals));
                }
                Due::Overdue(signal) => signals.press(signal),
                Due::Condemned(signal) => {
                    if signals.condemn(signal) {
                        waiting.insert((Instant::now() + AGAIN, address, due), Arc::downgrade(&signals));
                    }
                }
            }
        }
    }
}

/// The number of deadlines that are set for the backend behind `signals`.
#[cfg(test)]
pub(crate) fn number(signals: &Arc<Signals>) -> usize {
    ALARM.waiting.lock().keys().filter(|(_, address, _)| *address == Arc::as_ptr(signals).addr()).count()
}

/// Returns when the thread waits for a deadline, and so has handled those that have passed.
#[cfg(test)]
pub(crate) fn until_handled() {
    while !ALARM.changed.notify_one() {
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_not_heard_is_overdue_and_then_condemns_until_it_is_heard() {
        let signals = Arc::<Signals>::default();
        signals.send(Signal::TERM);
        let now = Instant::now();
        assert!(!signals.is_overdue() && !signals.is_condemned());
        ALARM.set(now, Due::Overdue(Signal::TERM), &signals);
        until_handled();
        assert!(signals.is_overdue() && !signals.is_condemned());
        ALARM.set(now, Due::Condemned(Signal::TERM), &signals);
        until_handled();
        assert!(signals.is_condemned());
        assert_eq!(number(&signals), 1, "it is stopped again");
        assert_eq!(signals.take().collect::<Vec<_>>(), [Signal::TERM]);
        assert!(!signals.is_overdue() && !signals.is_condemned());
        while number(&signals) > 0 {
            thread::yield_now();
        }
        signals.send(Signal::TERM);
        assert!(!signals.is_overdue() && !signals.is_condemned(), "another one has its time again");
    }

    #[test]
    fn a_signal_that_was_heard_in_time_changes_nothing() {
        let signals = Arc::<Signals>::default();
        signals.send_until_heard(Signal::INT);
        assert_eq!(number(&signals), 2);
        assert_eq!(signals.take().collect::<Vec<_>>(), [Signal::INT]);
        for due in [Due::Overdue(Signal::INT), Due::Condemned(Signal::INT)] {
            ALARM.set(Instant::now(), due, &signals);
        }
        until_handled();
        assert!(!signals.is_overdue() && !signals.is_condemned());
    }
}
