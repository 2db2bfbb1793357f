//! The time functions of Emscripten's C library. The guest's zone is UTC (`TZ=UTC`), so that clusters do not depend on
//! the host's zone.
//!
//! The guest's time of day is that of its [`Clock`](crate::clock::Clock). Real time is for what `PostgreSQL` measures
//! and waits for: the monotonic clocks, and the calls of `GetCurrentTimestamp` that the rewriter has replaced
//! (`instrument/real_time.rs`).

use std::time::Instant;

use jiff::{Timestamp, civil, tz::TimeZone};
use wasmtime::{Caller, Linker};

use super::{Guest, memory};
use crate::{
    clock,
    fs::Errno,
    instrument::{HOOK_MODULE, Hook},
    postgres::timestamp,
};

/// Offsets in `struct tm` of musl for wasm32 (Emscripten, `system/lib/libc/musl/include/time.h`).
mod tm {
    pub(super) const SEC: u32 = 0;
    pub(super) const MIN: u32 = 4;
    pub(super) const HOUR: u32 = 8;
    pub(super) const MDAY: u32 = 12;
    pub(super) const MON: u32 = 16;
    pub(super) const YEAR: u32 = 20;
    pub(super) const WDAY: u32 = 24;
    pub(super) const YDAY: u32 = 28;
    pub(super) const ISDST: u32 = 32;
    pub(super) const GMTOFF: u32 = 36;
}

/// `CLOCK_REALTIME` and `CLOCK_MONOTONIC`, whose numbers in musl and in WASI are the same.
const CLOCK_REALTIME: u32 = 0;
const CLOCK_MONOTONIC: u32 = 1;

/// Offset of `tv_usec`, an `int`, in `struct timeval` of musl for wasm32; `tv_sec` has 64 bits.
const MICROSECONDS: u32 = 8;

/// The longest zone name that `_tzset_js` may write, with its terminator (Emscripten, `src/lib/libcore.js`).
const ZONE_NAME: &[u8] = b"UTC-0000\0";

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let start = Instant::now();
    linker.func_wrap("env", "emscripten_get_now", move || start.elapsed().as_secs_f64() * 1e3)?;
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "clock_time_get",
        move |mut caller: Caller<'_, Guest>, clock: u32, _precision: i64, time: u32| -> wasmtime::Result<i32> {
            let (memory, guest) = memory::of(&mut caller)?;
            let nanoseconds = match clock {
                // A time before 1970 is none here.
                CLOCK_REALTIME => guest.clock.now().saturating_mul(1000).max(0).cast_unsigned(),
                CLOCK_MONOTONIC => u64::try_from(start.elapsed().as_nanos())?,
                _ => return Ok(Errno::EINVAL.number()),
            };
            memory::write_u64(memory, time, nanoseconds)?;
            Ok(0)
        },
    )?;
    linker
        .func_wrap("env", "emscripten_date_now", |caller: Caller<'_, Guest>| milliseconds(caller.data().clock.now()))?;
    linker.func_wrap(
        HOOK_MODULE,
        Hook::TimeOfDay.name(),
        |mut caller: Caller<'_, Guest>, time: u32, _zone: u32| -> wasmtime::Result<i32> {
            let (memory, guest) = memory::of(&mut caller)?;
            let now = guest.clock.now();
            let (seconds, microseconds) = (now.div_euclid(1_000_000), now.rem_euclid(1_000_000));
            memory::write_u64(memory, time, seconds.cast_unsigned())?;
            memory::write_u32(memory, time.wrapping_add(MICROSECONDS), u32::try_from(microseconds)?)?;
            Ok(0)
        },
    )?;
    linker.func_wrap(HOOK_MODULE, Hook::Timestamp.name(), |caller: Caller<'_, Guest>| {
        caller.data().clock.now() - timestamp::EPOCH
    })?;
    linker.func_wrap(HOOK_MODULE, Hook::RealTimestamp.name(), || clock::real_time() - timestamp::EPOCH)?;
    linker.func_wrap(HOOK_MODULE, Hook::ShownTimestamp.name(), |caller: Caller<'_, Guest>, real: i64| {
        caller.data().clock.at(real.saturating_add(timestamp::EPOCH)) - timestamp::EPOCH
    })?;
    linker.func_wrap(
        "env",
        "_gmtime_js",
        |mut caller: Caller<'_, Guest>, time: i64, tm: u32| -> wasmtime::Result<i32> {
            write_tm(memory::of(&mut caller)?.0, time, tm, false)
        },
    )?;
    linker.func_wrap(
        "env",
        "_localtime_js",
        |mut caller: Caller<'_, Guest>, time: i64, tm: u32| -> wasmtime::Result<i32> {
            write_tm(memory::of(&mut caller)?.0, time, tm, true)
        },
    )?;
    linker.func_wrap("env", "_mktime_js", |mut caller: Caller<'_, Guest>, tm: u32| -> wasmtime::Result<i64> {
        make_time(memory::of(&mut caller)?.0, tm)
    })?;
    linker.func_wrap(
        "env",
        "_tzset_js",
        |mut caller: Caller<'_, Guest>,
         timezone: u32,
         daylight: u32,
         standard: u32,
         summer: u32|
         -> wasmtime::Result<()> {
            let memory = memory::of(&mut caller)?.0;
            memory::write_u32(memory, timezone, 0)?;
            memory::write_u32(memory, daylight, 0)?;
            memory::write_bytes(memory, standard, ZONE_NAME)?;
            memory::write_bytes(memory, summer, ZONE_NAME)?;
            Ok(())
        },
    )?;
    Ok(())
}

/// The whole seconds of a time in microseconds since 1970, as milliseconds: only `time()` asks for these, and makes
/// seconds of them again.
#[expect(clippy::cast_precision_loss, reason = "an f64 has all integers of that size")]
fn milliseconds(time: i64) -> f64 {
    (time.div_euclid(1_000_000) * 1000) as f64
}

/// Writes the `struct tm` at `address` for `time`, in seconds since 1970. What is out of range is not written.
///
/// # Errors
/// When it is outside of the memory.
pub(crate) fn write_local_time(memory: &mut [u8], time: i64, address: u32) -> wasmtime::Result<()> {
    write_tm(memory, time, address, true).map(|_| ())
}

/// `gmtime` and `localtime`: 0, or 1 when the time is out of range (the C library then reports `EOVERFLOW`).
fn write_tm(memory: &mut [u8], time: i64, address: u32, local: bool) -> wasmtime::Result<i32> {
    let Ok(timestamp) = Timestamp::from_second(time) else { return Ok(1) };
    let time = timestamp.to_zoned(TimeZone::UTC);
    let mut fields = vec![
        (tm::SEC, i32::from(time.second())),
        (tm::MIN, i32::from(time.minute())),
        (tm::HOUR, i32::from(time.hour())),
        (tm::MDAY, i32::from(time.day())),
        (tm::MON, i32::from(time.month()) - 1),
        (tm::YEAR, i32::from(time.year()) - 1900),
        (tm::WDAY, i32::from(time.weekday().to_sunday_zero_offset())),
        (tm::YDAY, i32::from(time.day_of_year()) - 1),
    ];
    if local {
        fields.extend([(tm::ISDST, 0), (tm::GMTOFF, 0)]);
    }
    for (offset, value) in fields {
        memory::write_u32(memory, address.wrapping_add(offset), value.cast_unsigned())?;
    }
    Ok(0)
}

/// `mktime`: returns seconds since the epoch and normalises the fields of `struct tm`; -1 when the time is out of
/// range.
fn make_time(memory: &mut [u8], address: u32) -> wasmtime::Result<i64> {
    let mut fields = [0_i64; 6];
    for (field, offset) in fields.iter_mut().zip([tm::YEAR, tm::MON, tm::MDAY, tm::HOUR, tm::MIN, tm::SEC]) {
        *field = i64::from(memory::read_u32(memory, address.wrapping_add(offset))?.cast_signed());
    }
    let [year, month, day, hour, minute, second] = fields;
    // Months and all smaller fields may be out of range, in both directions.
    let first = i16::try_from(1900 + year + month.div_euclid(12)).ok().and_then(|year| {
        let month = i8::try_from(month.rem_euclid(12) + 1).ok()?;
        civil::date(1970, 1, 1).with().year(year).month(month).build().ok()?.to_zoned(TimeZone::UTC).ok()
    });
    let Some(first) = first else { return Ok(-1) };
    let seconds = first.timestamp().as_second() + (day - 1) * 86_400 + hour * 3_600 + minute * 60 + second;
    if write_tm(memory, seconds, address, true)? != 0 {
        return Ok(-1);
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(memory: &[u8], offset: u32) -> i32 {
        memory::read_u32(memory, offset).unwrap().cast_signed()
    }

    #[test]
    fn a_leap_day_has_its_fields() {
        let mut memory = vec![0xff; 64];
        assert_eq!(write_tm(&mut memory, 951_827_696, 0, true).unwrap(), 0); // 2000-02-29 12:34:56 UTC, a Tuesday
        let fields: Vec<i32> = (0..10).map(|n| field(&memory, n * 4)).collect();
        assert_eq!(fields, [56, 34, 12, 29, 1, 100, 2, 59, 0, 0]);
    }

    #[test]
    fn mktime_brings_fields_into_their_ranges() {
        let mut memory = vec![0; 64];
        // The 0th of March 2000, 36 o'clock, is the 1st of March at noon minus a day.
        for (offset, value) in [(tm::YEAR, 100), (tm::MON, 2), (tm::MDAY, 0), (tm::HOUR, 36)] {
            memory::write_u32(&mut memory, offset, value).unwrap();
        }
        assert_eq!(make_time(&mut memory, 0).unwrap(), 951_912_000);
        assert_eq!((field(&memory, tm::MON), field(&memory, tm::MDAY), field(&memory, tm::HOUR)), (2, 1, 12));
    }

    #[test]
    fn times_beyond_the_calendar_are_refused() {
        let mut memory = vec![0; 64];
        assert_eq!(write_tm(&mut memory, i64::MAX, 0, false).unwrap(), 1);
        memory::write_u32(&mut memory, tm::YEAR, i32::MAX.cast_unsigned()).unwrap();
        assert_eq!(make_time(&mut memory, 0).unwrap(), -1);
    }

    #[test]
    fn an_address_outside_the_memory_is_an_error() {
        assert!(write_tm(&mut [0; 16], 0, 8, false).is_err());
        assert!(write_tm(&mut [0; 16], 0, u32::MAX - 2, false).is_err());
    }
}
