//! Interval timers: `_setitimer_js`, on which `PostgreSQL`'s timeouts stand.
//!
//! `PostgreSQL` keeps one real-time timer armed for the nearest of its timeouts. When it is due, `_emscripten_timeout` must run in the guest, on its own thread;
//! it raises `SIGALRM`. A thread of the program watches the clock and interrupts the backend, whose hooks then find the timer due.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Weak},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use wasmtime::{AsContextMut, Caller, Linker};

use super::Guest;
use crate::cluster::Signals;

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

    /// From now on those signals interrupt the guest when a timer is due.
    pub(super) fn set_signals(&mut self, signals: Arc<Signals>) {
        self.signals = signals;
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.deadlines.iter().flatten().min().copied()
    }

    /// Takes a timer that is due.
    fn take_due(&mut self) -> Option<usize> {
        if self.deadlines == [None; TIMERS] {
            return None;
        }
        let now = Instant::now();
        let which = self.deadlines.iter().position(|deadline| deadline.is_some_and(|deadline| deadline <= now))?;
        self.deadlines[which] = None;
        Some(which)
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "env",
        "_setitimer_js",
        |mut caller: Caller<'_, Guest>, which: i32, milliseconds: f64| -> i32 {
            let timers = &mut caller.data_mut().timers;
            let deadline = (milliseconds > 0.0)
                .then(|| Duration::try_from_secs_f64(milliseconds / 1e3).ok())
                .flatten()
                .and_then(|after| Instant::now().checked_add(after));
            if let Some(place) = usize::try_from(which).ok().and_then(|which| timers.deadlines.get_mut(which)) {
                *place = deadline;
            }
            if let Some(deadline) = deadline {
                ALARM.set(deadline, &timers.signals);
            }
            0
        },
    )?;
    Ok(())
}

/// Runs the handlers of the timers that are due, in the guest.
///
/// # Errors
/// When the handlers trap or exit.
pub(super) fn run_due(store: &mut impl AsContextMut<Data = Guest>) -> wasmtime::Result<()> {
    while let Some(which) = store.as_context_mut().data_mut().timers.take_due() {
        let guest = store.as_context().data();
        let now = guest.timers.start.elapsed().as_secs_f64() * 1e3;
        let timeout = guest.exports()?.timeout.clone();
        timeout.call(&mut *store, (u32::try_from(which)?, now))?;
    }
    Ok(())
}

/// The thread that watches the clock for all guests.
struct Alarm {
    waiting: Mutex<BTreeMap<(Instant, usize), Weak<Signals>>>,
    changed: Condvar,
}

static ALARM: LazyLock<&'static Alarm> = LazyLock::new(|| {
    let alarm: &'static Alarm = Box::leak(Box::new(Alarm { waiting: Mutex::default(), changed: Condvar::new() }));
    let spawned = thread::Builder::new().name("alarm".into()).stack_size(64 << 10).spawn(|| alarm.run());
    if let Err(error) = spawned {
        tracing::error!(
            "timeouts will only be noticed between queries, because their thread cannot be started: {error}"
        );
    }
    alarm
});

impl Alarm {
    /// Interrupts that backend at `deadline`. A deadline that was withdrawn meanwhile costs it one look at its timers.
    fn set(&self, deadline: Instant, signals: &Arc<Signals>) {
        let mut waiting = self.waiting.lock();
        let is_next = waiting.first_key_value().is_none_or(|((next, _), _)| deadline < *next);
        waiting.insert((deadline, Arc::as_ptr(signals).addr()), Arc::downgrade(signals));
        if is_next {
            self.changed.notify_one();
        }
    }

    fn run(&self) {
        let mut waiting = self.waiting.lock();
        loop {
            let Some(&(deadline, backend)) = waiting.keys().next() else {
                self.changed.wait(&mut waiting);
                continue;
            };
            if self.changed.wait_until(&mut waiting, deadline).timed_out()
                && let Some(signals) = waiting.remove(&(deadline, backend)).and_then(|signals| signals.upgrade())
            {
                signals.interrupt();
            }
        }
    }
}
