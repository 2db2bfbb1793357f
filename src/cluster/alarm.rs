//! A thread that waits for deadlines of backends: of the guests' timers, and of signals that were not heard.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Weak},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Signal, Signals};

/// How long a condemned backend goes on until it is stopped again, if it did not end at the safepoint.
pub(super) const AGAIN: Duration = Duration::from_millis(20);

/// What happens at a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The guest's timer of that number is due: the backend is interrupted, and its hooks find the timer.
    Timer(usize),
    /// The backend has had time to hear a signal.
    Signal(Signal),
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

/// Looks at `deadline` whether the backend behind `signals` has heard `signal`.
pub(super) fn watch(signals: &Arc<Signals>, signal: Signal, deadline: Instant) {
    ALARM.set(deadline, Due::Signal(signal), signals);
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
            if Instant::now() < deadline {
                self.changed.wait_until(&mut waiting, deadline);
                continue;
            }
            let Some(signals) = waiting.remove(&next).and_then(|signals| signals.upgrade()) else { continue };
            let now = Instant::now();
            let (signal, again) = match due {
                Due::Timer(_) => {
                    let again = signals.begin_to_watch(Signal::ALRM, now);
                    signals.interrupt();
                    (Signal::ALRM, again)
                }
                Due::Signal(signal) => (signal, signals.watch(signal, now)),
            };
            if let Some(again) = again {
                waiting.insert((again, address, Due::Signal(signal)), Arc::downgrade(&signals));
            }
            // The last reference may be this one, and what it refers to is dropped without the lock.
            MutexGuard::unlocked(&mut waiting, || drop(signals));
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
        let slice = signals.slice;
        let sent = Instant::now();
        let overdue = signals.begin_to_watch(Signal::TERM, sent).unwrap();
        assert!(!signals.is_overdue());
        assert_eq!(signals.begin_to_watch(Signal::TERM, overdue), None, "it is watched already");
        let condemned = signals.watch(Signal::TERM, overdue).unwrap();
        assert_eq!((overdue, condemned), (sent + slice.until_overdue(), sent + slice.until_condemned()));
        assert!(signals.is_overdue() && signals.condemned_since().is_none());
        assert_eq!(signals.watch(Signal::TERM, condemned), Some(condemned + AGAIN), "it is stopped again");
        assert_eq!(signals.condemned_since(), Some(sent));
        assert_eq!(signals.take().collect::<Vec<_>>(), [Signal::TERM]);
        assert!(!signals.is_overdue() && signals.condemned_since().is_none());

        // Another one has its time again, though the deadline of the first one is still there.
        let again = condemned;
        assert_eq!(signals.begin_to_watch(Signal::TERM, again), None);
        assert_eq!(signals.watch(Signal::TERM, condemned + AGAIN), Some(again + slice.until_overdue()));
        assert!(!signals.is_overdue());
        drop(signals.take());
        assert_eq!(signals.watch(Signal::TERM, again + slice.until_overdue()), None);
        assert!(signals.begin_to_watch(Signal::TERM, again).is_some());
    }

    #[test]
    fn a_timer_is_overdue_and_never_condemns() {
        let signals = Arc::<Signals>::default();
        let sent = Instant::now();
        signals.begin_to_watch(Signal::ALRM, sent);
        signals.watch(Signal::ALRM, sent + 2 * signals.slice.until_condemned());
        assert!(signals.is_overdue() && signals.condemned_since().is_none());
    }

    #[test]
    fn many_signals_need_one_deadline() {
        let signals = Arc::<Signals>::default();
        for _ in 0..1000 {
            signals.send_until_heard(Signal::INT);
            drop(signals.take());
        }
        assert!(number(&signals) <= 1);
    }
}
