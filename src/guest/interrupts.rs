//! The host's side of the hooks that the rewriter put into `PostgreSQL` (`instrument`): waiting, sleeping, interrupts,
//! signals.

use std::time::{Duration, Instant};

use wasmtime::{AsContextMut, Caller, Linker};

use crate::{
    client::{Interest, Readiness},
    cluster::{Signal, processor_time},
    fs::Errno,
    instrument::{HOOK_MODULE, Hook},
    postgres::wait_event_set,
};

use super::{Guest, checkpoint, memory, timers, waiting};

/// A shorter sleep lasts while other processes wait for their turns ([`waiting::wait_for_others`]). Linux would wake
/// the thread this much later than asked for (`PR_SET_TIMERSLACK`). `PostgreSQL` has no such sleep but a
/// `commit_delay`.
const SHORTEST_SLEEP: Duration = Duration::from_micros(50);

/// The counters that are not 0 while a process has a lightweight lock, is in a critical section, or holds interrupts off
/// for another reason (`src/backend/utils/init/globals.c`).
pub(crate) const HOLDS: [&str; 2] = ["InterruptHoldoffCount", "CritSectionCount"];

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        HOOK_MODULE,
        Hook::InitProcess.name(),
        |mut caller: Caller<'_, Guest>| -> wasmtime::Result<()> {
            match caller.data_mut().before_fork.take() {
                Some(before_fork) => before_fork(&mut caller),
                None => Ok(()),
            }
        },
    )?;
    linker.func_wrap(HOOK_MODULE, Hook::ProcessInterrupts.name(), |mut caller: Caller<'_, Guest>| {
        process_interrupts(&mut caller)
    })?;
    linker.func_wrap(
        HOOK_MODULE,
        Hook::WaitEventSetWait.name(),
        |mut caller: Caller<'_, Guest>, timeout: i32, latch: u32, set: u32| {
            let timeout = u64::try_from(timeout).ok().map(Duration::from_millis);
            let interest = interest_of(memory::of(&mut caller)?.0, set)?;
            wait(&mut caller, timeout, latch, interest)
        },
    )?;
    linker.func_wrap(HOOK_MODULE, Hook::PgUsleep.name(), |mut caller: Caller<'_, Guest>, microseconds: i32| {
        match u64::try_from(microseconds).map(Duration::from_micros) {
            // It returns early when a signal handler has run, as nanosleep does.
            Ok(time) if time >= SHORTEST_SLEEP => wait(&mut caller, Some(time), 0, Interest::Nothing),
            Ok(time) if !time.is_zero() => waiting::wait_for_others(&mut caller),
            _ => Ok(()),
        }
    })?;
    linker.func_wrap(HOOK_MODULE, Hook::IsOverdue.name(), |mut caller: Caller<'_, Guest>| {
        let is_overdue = caller.data().signals.is_overdue() && !holds_interrupts_off(&mut caller)?;
        Ok::<_, wasmtime::Error>(i32::from(is_overdue && must_check(caller.data_mut())))
    })?;
    linker.func_wrap(HOOK_MODULE, Hook::Kill.name(), kill)?;
    linker.func_wrap(HOOK_MODULE, Hook::SemaphoreWait.name(), |mut caller: Caller<'_, Guest>, flag: u32| {
        waiting::wait_until_cleared(&mut caller, flag)
    })?;
    linker.func_wrap(HOOK_MODULE, Hook::RequestCheckpoint.name(), checkpoint::request)?;
    linker.func_wrap(HOOK_MODULE, Hook::WalSegment.name(), checkpoint::count_segment)?;
    linker.func_wrap(HOOK_MODULE, Hook::PostmasterIsAlive.name(), |mut caller: Caller<'_, Guest>| {
        // The startup process calls this every 1,024 records of WAL, and checks for interrupts nowhere while it redoes
        // them; its timer for the log of its progress is due meanwhile.
        deliver(&mut caller)?;
        // The session of a cluster that has ended ends at its next turn.
        Ok::<_, wasmtime::Error>(1)
    })?;
    Ok(())
}

/// Runs the handlers of pending signals and of due timers; returns whether a signal's handler ran.
///
/// # Errors
/// When a handler traps or exits.
pub(crate) fn deliver(store: &mut impl AsContextMut<Data = Guest>) -> wasmtime::Result<bool> {
    let mut delivered = false;
    while store.as_context().data().signals.any() {
        let arrived = store.as_context().data().signals.take();
        for signal in arrived {
            // SIGURG only ends a wait, which it has done; SIGINT has no query to cancel in an idle session; the timers are
            // run below; and PostgreSQL carries on when its client has left.
            let is_idle = store.as_context().data().is_idle;
            if matches!(signal, Signal::URG | Signal::ALRM | Signal::PIPE) || (signal == Signal::INT && is_idle) {
                continue;
            }
            if signal == Signal::TERM {
                store.as_context_mut().data_mut().client.begin_to_end();
            }
            if let Some(raise) = store.as_context().data().exports()?.raise.clone() {
                raise.call(&mut *store, signal.number())?;
            }
            delivered = true;
        }
    }
    timers::run_due(store)?;
    Ok(delivered)
}

/// How much processor time a statement may take without a check for interrupts after its client has left.
const ALONE: Duration = Duration::from_millis(500);

/// Whether a backend that allocates memory and has not heard a signal for long has to check for interrupts. If its client
/// has left, it has to after [`ALONE`], and is told to end; one that has only waited for its turn hears before that.
fn must_check(guest: &mut Guest) -> bool {
    if !guest.signals.has_lost_client() {
        guest.alone_since = None;
        return true;
    }
    let now = processor_time();
    let since = *guest.alone_since.get_or_insert(now);
    let must_end = Duration::from_nanos(now.saturating_sub(since)) >= ALONE;
    if must_end {
        guest.signals.send(Signal::TERM);
    }
    must_end
}

/// Whether the process has a lightweight lock, is in a critical section, or holds interrupts off for another reason.
fn holds_interrupts_off(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<bool> {
    let (memory, guest) = memory::of(caller)?;
    for counter in HOLDS {
        if memory::read_u32(memory, guest.facts.address(counter)?)? != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// At a `CHECK_FOR_INTERRUPTS`: handles signals and timers, and gives other sessions their turns, where `PostgreSQL`
/// would handle interrupts, that is without lightweight locks and outside critical sections (`ProcessInterrupts` in
/// `src/backend/tcop/postgres.c`).
fn process_interrupts(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    // What a handler would set is looked at later, too, and a signal that waits is one that is not heard.
    if holds_interrupts_off(caller)? {
        return Ok(());
    }
    deliver(caller)?;
    checkpoint::wait_if_due(caller)?;
    let Some(seat) = caller.data_mut().seat.as_mut().filter(|seat| seat.others_wait()) else { return Ok(()) };
    seat.end_turn();
    seat.take_turn()?;
    deliver(caller)?;
    Ok(())
}

/// Waits as `poll` would in `WaitEventSetWait`, until the latch at `latch` (if any) is set, the timeout has passed, a
/// signal has been handled, or the client's connection is ready for what is of interest.
///
/// The `poll` of this build reports no events, so the latch is set in the last case as well: `PostgreSQL` then checks
/// everything that it waits for, and a latch may be set without a reason (`src/include/storage/latch.h`).
fn wait(
    caller: &mut Caller<'_, Guest>,
    timeout: Option<Duration>,
    latch: u32,
    interest: Interest,
) -> wasmtime::Result<()> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    if timeout.is_some() {
        checkpoint::relieve(caller)?;
    }
    loop {
        let delivered = deliver(caller)?;
        if latch != 0 && memory::read_u32(memory::of(caller)?.0, latch)? != 0 {
            return Ok(());
        }
        if delivered || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(());
        }
        let guest = caller.data();
        let gives_up = guest.client.gives_up(interest);
        let until = [deadline, guest.timers.next(), gives_up].into_iter().flatten().min();
        match waiting::wait(caller, interest, until)? {
            Readiness::TimedOut if gives_up.is_none_or(|at| at > Instant::now()) => {}
            // Writing fails after that time.
            Readiness::Ready | Readiness::TimedOut => {
                if latch != 0 {
                    memory::write_u32(memory::of(caller)?.0, latch, 1)?;
                }
                return Ok(());
            }
            Readiness::Woken => {}
        }
    }
}

/// What a `WaitEventSet` waits for of the client's connection. A walsender waits for what its subscriber may tell it,
/// and for room to write if it has something to send.
fn interest_of(memory: &[u8], set: u32) -> wasmtime::Result<Interest> {
    let count = memory::read_u32(memory, set.wrapping_add(wait_event_set::COUNT))?;
    let first = memory::read_u32(memory, set.wrapping_add(wait_event_set::EVENTS))?;
    let mut events = 0;
    for at in 0..count {
        let event = first.wrapping_add(at.wrapping_mul(wait_event_set::EVENT_SIZE));
        events |= memory::read_u32(memory, event.wrapping_add(wait_event_set::EVENT_KINDS))?;
    }
    let has = |kind| events & kind != 0;
    Ok(match (has(wait_event_set::READABLE), has(wait_event_set::WRITABLE)) {
        (true, true) => Interest::Either,
        (true, false) => Interest::Read,
        (false, true) => Interest::Write,
        (false, false) => Interest::Nothing,
    })
}

/// `kill`: returns 0, or the negated errno. A negative process id, in `PostgreSQL` the group of a child, is the
/// process itself here. 0, the caller's group and the `PostmasterPid` of a backend that was booted alone, is the
/// caller if it has its own cluster.
fn kill(mut caller: Caller<'_, Guest>, pid: i32, signal: i32) -> wasmtime::Result<i32> {
    let (memory, guest) = memory::of(&mut caller)?;
    let own = memory::read_u32(memory, guest.my_proc_pid)?.cast_signed();
    let target = if pid == 0 && guest.seat.is_none() { own } else { pid.wrapping_abs() };
    let signal = match (signal, Signal::from_number(signal)) {
        (0, _) => None,
        (_, Some(signal)) => Some(signal),
        (_, None) => return Ok(-Errno::EINVAL.number()),
    };
    if target != own {
        let is_there = guest.seat.as_ref().is_some_and(|seat| seat.send(target, signal));
        return Ok(if is_there { 0 } else { -Errno::ESRCH.number() });
    }
    let Some(signal) = signal else { return Ok(0) };
    // A signal of a process to itself is handled before kill returns.
    caller.data().signals.send(signal);
    deliver(&mut caller)?;
    Ok(0)
}
