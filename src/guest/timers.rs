//! Interval timers: `_setitimer_js`, on which `PostgreSQL`'s timeouts are built.
//!
//! `PostgreSQL` keeps one real-time timer armed for its next timeout. When it is due, `_emscripten_timeout` must run
//! in the guest, on its own thread; it raises `SIGALRM`. A thread of the program waits for the deadlines and
//! interrupts the backend, whose hooks then find the timer due.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wasmtime::{AsContextMut, Caller, Linker};

use super::Guest;
use crate::cluster::{Signals, alarm};

/// `ITIMER_REAL`, `ITIMER_VIRTUAL` and `ITIMER_PROF`; Emscripten runs all three on real time.
const TIMERS: usize = 3;

/// The timers of one guest.
pub(crate) struct Timers {
    deadlines: [Option<Instant>; TIMERS],
    signals: Arc<Signals>,
    start: Instant,
}

impl Timers {
    pub(super) fn new(signals: Arc<Signals>) -> Self {
        Self { deadlines: [None; TIMERS], signals, start: Instant::now() }
    }

    /// Sets the signals that interrupt the guest when a timer is due.
    pub(super) fn set_signals(&mut self, signals: Arc<Signals>) {
        let deadlines = self.deadlines;
        self.disarm();
        self.signals = signals;
        for (which, deadline) in deadlines.into_iter().enumerate() {
            self.set(which, deadline);
        }
    }

    /// Withdraws every deadline.
    fn disarm(&mut self) {
        for which in 0..TIMERS {
            self.set(which, None);
        }
    }

    /// Sets or withdraws the deadline of a timer; numbers from [`TIMERS`] on are ignored.
    fn set(&mut self, which: usize, deadline: Option<Instant>) {
        let Some(place) = self.deadlines.get_mut(which) else { return };
        if let Some(old) = std::mem::replace(place, deadline) {
            alarm::withdraw(old, which, &self.signals);
        }
        if let Some(deadline) = deadline {
            alarm::set(deadline, which, &self.signals);
        }
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.deadlines.iter().flatten().min().copied()
    }

    /// The timers with a deadline.
    pub(crate) fn armed(&self) -> Vec<usize> {
        (0..TIMERS).filter(|&which| self.deadlines[which].is_some()).collect()
    }

    /// Makes these timers run at the next opportunity.
    pub(crate) fn make_due(&mut self, timers: &[usize]) {
        for &which in timers {
            self.set(which, Some(Instant::now()));
        }
    }

    /// Takes a timer that is due at the time `now` returns, which is called only if a timer has a deadline.
    fn take_due(&mut self, now: impl FnOnce() -> Instant) -> Option<usize> {
        if self.deadlines == [None; TIMERS] {
            return None;
        }
        let now = now();
        let which = self.deadlines.iter().position(|deadline| deadline.is_some_and(|deadline| deadline <= now))?;
        self.deadlines[which] = None;
        Some(which)
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.disarm();
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "env",
        "_setitimer_js",
        |mut caller: Caller<'_, Guest>, which: i32, milliseconds: f64| -> i32 {
            if let Ok(which) = usize::try_from(which) {
                caller.data_mut().timers.set(which, deadline(Instant::now(), milliseconds));
            }
            0
        },
    )?;
    Ok(())
}

/// When a timer is due that is set at `now` for so many milliseconds; never for 0, with which the guest withdraws it.
fn deadline(now: Instant, milliseconds: f64) -> Option<Instant> {
    let after = (milliseconds > 0.0).then(|| Duration::try_from_secs_f64(milliseconds / 1e3).ok()).flatten()?;
    now.checked_add(after)
}

/// Runs the handlers of due timers in the guest.
///
/// # Errors
/// When the handlers trap or exit.
pub(super) fn run_due(store: &mut impl AsContextMut<Data = Guest>) -> wasmtime::Result<()> {
    while let Some(which) = store.as_context_mut().data_mut().timers.take_due(Instant::now) {
        let guest = store.as_context().data();
        let now = guest.timers.start.elapsed().as_secs_f64() * 1e3;
        let timeout = guest.exports()?.timeout.clone();
        timeout.call(&mut *store, (u32::try_from(which)?, now))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, TryRecvError, channel};

    use super::*;
    use crate::client::Waker;

    const HOUR: Duration = Duration::from_hours(1);

    /// Signals, and the interrupts that they send.
    fn observed() -> (Arc<Signals>, Receiver<()>) {
        let (interrupted, interrupts) = channel();
        let signals = Arc::<Signals>::default();
        signals.set_waker(Some(Waker::new(move || {
            let _ = interrupted.send(());
        })));
        (signals, interrupts)
    }

    #[test]
    fn a_timer_is_due_after_so_many_milliseconds_and_one_of_0_is_withdrawn() {
        let now = Instant::now();
        assert_eq!(deadline(now, 20.0), Some(now + Duration::from_millis(20)));
        assert_eq!(deadline(now, 0.25), Some(now + Duration::from_micros(250)));
        for never in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MAX] {
            assert_eq!(deadline(now, never), None, "{never}");
        }
    }

    #[test]
    fn a_timer_is_taken_once_when_it_is_due_and_not_before_and_not_when_it_was_withdrawn() {
        let (now, mut timers) = (Instant::now(), Timers::new(Arc::default()));
        let [first, second] = [HOUR, 2 * HOUR].map(|after| now + after);
        timers.set(1, Some(second));
        timers.set(0, Some(first));
        assert_eq!((timers.next(), timers.armed()), (Some(first), vec![0, 1]));
        assert_eq!(timers.take_due(|| first.checked_sub(Duration::from_nanos(1)).unwrap()), None);
        assert_eq!(timers.take_due(|| first), Some(0));
        assert_eq!((timers.next(), timers.armed()), (Some(second), vec![1]));
        assert_eq!(timers.take_due(|| second.checked_sub(Duration::from_nanos(1)).unwrap()), None);
        timers.set(1, None);
        assert_eq!((timers.next(), timers.armed()), (None, vec![]));
        assert_eq!(timers.take_due(|| second), None);
    }

    #[test]
    fn a_guest_is_interrupted_when_its_timer_is_due_and_another_one_is_not() {
        let (due, interrupts) = observed();
        let (later, no_interrupts) = observed();
        let (mut timers, mut other) = (Timers::new(due), Timers::new(later.clone()));
        let hour = Instant::now() + HOUR;
        other.set(0, Some(hour));
        timers.set(0, Some(Instant::now()));
        assert_eq!(interrupts.recv_timeout(Duration::from_mins(1)), Ok(()));
        alarm::until_handled();
        assert_eq!(no_interrupts.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(alarm::number(&later), 1);
    }

    #[test]
    fn a_guest_has_no_more_deadlines_than_timers_and_none_when_it_is_gone() {
        let signals = Arc::<Signals>::default();
        let number = || alarm::number(&signals);
        let mut timers = Timers::new(signals.clone());
        let hour = Instant::now() + Duration::from_hours(1);
        for second in 0..100 {
            timers.set(0, Some(hour + Duration::from_secs(second)));
            timers.set(2, Some(hour));
            timers.set(TIMERS, Some(hour));
        }
        assert_eq!((number(), timers.next()), (2, Some(hour)));
        timers.set(2, None);
        assert_eq!(number(), 1);
        timers.set_signals(Arc::default());
        assert_eq!(number(), 0);
        timers.set_signals(signals.clone());
        assert_eq!(number(), 1);
        drop(timers);
        assert_eq!(number(), 0);
    }
}
