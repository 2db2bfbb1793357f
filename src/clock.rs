//! The clock that the sessions of a cluster see, which tests can set.
//!
//! `PostgreSQL` measures and waits by real time all the same (`instrument/real_time.rs`).

use std::{
    ops::Range,
    sync::atomic::{AtomicI64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// The times that a clock can be set to: the years 1 to 9999, in microseconds since 1970. `PostgreSQL`, Elixir and
/// ISO 8601 all have these.
const TIMES: Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;

/// How a clock is set. Times are in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockSetting {
    /// It shows this time, and goes on from there.
    At(i64),
    /// It shows a time so many microseconds later than it did, or earlier, and goes on from there.
    By(i64),
    /// It stands still, at this time or at the time that it shows.
    Frozen(Option<i64>),
    /// It shows real time.
    Real,
}

/// A time that a clock cannot be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a clock can be set to a time in the years 1 to 9999 only")]
pub struct OutOfRange;

/// The clock of a cluster, for all of its sessions. It shows real time until it is set.
///
/// Its state is one number, so that a session never sees half of a setting: twice the microseconds by which it is ahead
/// of real time, or twice the time at which it stands still, plus 1.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicI64);

impl Clock {
    /// The time that it shows, in microseconds since 1970.
    pub(crate) fn now(&self) -> i64 {
        self.at(real_time())
    }

    /// The time that it shows at the real time `real`, as it is set now.
    pub(crate) fn at(&self, real: i64) -> i64 {
        shown(self.0.load(Ordering::Relaxed), real)
    }

    /// Sets it. Every session sees that when it next looks at its clock.
    ///
    /// # Errors
    /// When it cannot be set to that time.
    pub(crate) fn set(&self, setting: ClockSetting) -> Result<(), OutOfRange> {
        let real = real_time();
        let next = |state| {
            let now = shown(state, real);
            let (time, stands_still) = match setting {
                ClockSetting::At(time) => (Some(time), false),
                ClockSetting::By(microseconds) => (now.checked_add(microseconds), false),
                ClockSetting::Frozen(time) => (Some(time.unwrap_or(now)), true),
                ClockSetting::Real => return Some(0),
            };
            let time = time.filter(|time| TIMES.contains(time))?;
            Some(if stands_still { time * 2 + 1 } else { (time - real) * 2 })
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_or(Err(OutOfRange), |_| Ok(()))
    }
}

/// The time that a clock in this state shows at the real time `real`.
fn shown(state: i64, real: i64) -> i64 {
    if state & 1 == 1 { state >> 1 } else { real.saturating_add(state >> 1) }
}

/// Real time, in microseconds since 1970.
pub(crate) fn real_time() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    /// What the clock shows, less real time, in whole hours.
    fn hours_ahead(clock: &Clock) -> i64 {
        (clock.now() - real_time() + HOUR / 2).div_euclid(HOUR)
    }

    #[test]
    fn a_clock_goes_on_from_where_it_is_set_and_back() {
        let clock = Clock::default();
        assert_eq!(hours_ahead(&clock), 0);
        clock.set(ClockSetting::At(real_time() - 5 * HOUR)).unwrap();
        assert_eq!(hours_ahead(&clock), -5);
        clock.set(ClockSetting::By(7 * HOUR)).unwrap();
        assert_eq!(hours_ahead(&clock), 2);
        assert_eq!(clock.at(10 * HOUR) - clock.at(9 * HOUR), HOUR, "it goes on");
        clock.set(ClockSetting::Real).unwrap();
        assert_eq!(clock.at(HOUR), HOUR);
    }

    #[test]
    fn a_frozen_clock_stands_still_to_the_microsecond_until_it_is_set_again() {
        let clock = Clock::default();
        for time in [1_893_456_000_123_456, -1, 0, TIMES.start, TIMES.end - 1] {
            clock.set(ClockSetting::Frozen(Some(time))).unwrap();
            assert_eq!([clock.at(0), clock.now()], [time; 2]);
        }
        clock.set(ClockSetting::At(real_time() + 3 * HOUR)).unwrap();
        clock.set(ClockSetting::Frozen(None)).unwrap();
        assert_eq!((hours_ahead(&clock), clock.at(0)), (3, clock.now()));
        clock.set(ClockSetting::By(HOUR)).unwrap();
        assert_eq!(hours_ahead(&clock), 4);
        assert_ne!(clock.at(0), clock.at(1), "it goes on again");
    }

    #[test]
    fn a_time_out_of_range_is_refused_and_changes_nothing() {
        let clock = Clock::default();
        clock.set(ClockSetting::Frozen(Some(7))).unwrap();
        for setting in [
            ClockSetting::At(TIMES.start - 1),
            ClockSetting::At(TIMES.end),
            ClockSetting::At(i64::MIN),
            ClockSetting::By(i64::MAX),
            ClockSetting::By(i64::MIN),
            ClockSetting::Frozen(Some(i64::MAX)),
        ] {
            assert_eq!(clock.set(setting), Err(OutOfRange), "{setting:?}");
            assert_eq!(clock.now(), 7);
        }
    }

    #[test]
    fn the_range_is_that_of_the_years_1_to_9999() {
        let microseconds = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_microsecond();
        assert_eq!(TIMES.start, microseconds("0001-01-01T00:00:00Z"));
        assert_eq!(TIMES.end - 1, microseconds("9999-12-30T22:00:00.999999Z") + 26 * HOUR - 1_000_000);
    }
}
