//! The clock of a cluster, which a test sets: what follows it, and what goes by real time all the same.

mod support;

use std::{
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};

use pglite_port::{
    clock::ClockSetting,
    connection::Connections,
    databases::{Leave, Settings, SharedSettings},
    log::LogSink,
    protocol::error_response::sqlstate,
    session::{Choice, Mode, Outcome, Task},
};
use support::{
    cache,
    local::{Connect, Local},
    session::errors,
};

const HOUR: i64 = 3_600_000_000;

/// 2040-02-29 12:34:56.123457 UTC.
const LEAP_DAY: i64 = 2_214_131_696_123_457;

/// Connections to clusters whose clocks can be set.
fn connections() -> Arc<Connections> {
    // Its statistics are looked at every second.
    let shared =
        SharedSettings { further: vec![("autovacuum_naptime".into(), "1s".into())], ..SharedSettings::default() };
    cache::connections(Settings { leave: Leave { clock: true, seed: false }, shared, ..Settings::default() })
}

fn isolated(connections: &Arc<Connections>) -> Local {
    Local::connect(connections, Connect::default()).0
}

fn shared(connections: &Arc<Connections>) -> Local {
    Local::connect(connections, Connect { mode: Mode::Shared, ..Connect::default() }).0
}

fn try_to_set(local: &Local, setting: ClockSetting) -> Outcome {
    local.perform(Task::Choose(Choice::Clock(setting)))
}

fn set(local: &Local, setting: ClockSetting) {
    try_to_set(local, setting).expect("it is set");
}

/// The values of a query as soon as it has rows.
fn until_there_are_rows(local: &mut Local, sql: &str) -> Vec<String> {
    let deadline = Instant::now() + support::PATIENCE;
    loop {
        let values = local.values(sql);
        if !values.is_empty() {
            return values;
        }
        assert!(Instant::now() < deadline, "no rows: {sql}");
        // Other processes need their turns, and no event tells of what is waited for.
        local.values("select pg_sleep(0.02)");
    }
}

/// A statement that tells when it has begun, and then runs `sql`.
fn telling(sql: &str) -> String {
    format!("do $$ begin raise notice 'it has begun'; {sql}; end $$")
}

/// Runs a statement, and sets the clock when it has begun; returns the SQLSTATEs of its errors, and how long it took.
fn set_while_it_runs(local: &mut Local, sql: &str, setting: ClockSetting) -> (Vec<String>, Duration) {
    let began = Instant::now();
    local.send(&support::wire::query(&telling(sql)));
    local.wait_for_answer();
    set(local, setting);
    let answer = local.until_ready();
    (errors(&answer), began.elapsed())
}

/// Settings that would break what measures with the time of day.
const SETTINGS: [ClockSetting; 4] =
    [ClockSetting::By(-HOUR), ClockSetting::By(HOUR), ClockSetting::Frozen(None), ClockSetting::Frozen(Some(LEAP_DAY))];

#[test]
fn everything_that_sql_asks_the_time_of_follows_a_frozen_clock_to_the_microsecond() {
    for mode in [Mode::Isolated, Mode::Shared] {
        let mut local = Local::connect(&connections(), Connect { mode, ..Connect::default() }).0;
        local.values(
            "create table t (id int, made_at timestamptz default now(), made_on date default current_date, \
             touched_at timestamptz); \
             create function touch() returns trigger language plpgsql as \
             $$ begin new.touched_at := clock_timestamp(); return new; end $$; \
             create trigger touched before insert on t for each row execute function touch()",
        );
        set(&local, ClockSetting::Frozen(Some(LEAP_DAY)));
        let moment = "2040-02-29 12:34:56.123457+00";
        for sql in
            ["now()", "transaction_timestamp()", "statement_timestamp()", "clock_timestamp()", "current_timestamp"]
        {
            assert_eq!(local.values(&format!("select {sql}")), [moment], "{sql}");
        }
        for (sql, value) in [
            ("current_date", "2040-02-29"),
            ("localtime", "12:34:56.123457"),
            ("'today'::date", "2040-02-29"),
            ("timeofday()", "Wed Feb 29 12:34:56.123457 2040 UTC"),
            ("age(timestamp '2000-02-29')", "40 years"),
            ("extract(year from now() + interval '1 year')", "2041"),
            ("uuid_extract_timestamp(uuidv7()) - now() < interval '1 ms'", "t"),
            ("(select xact_start from pg_stat_activity where pid = pg_backend_pid())", moment),
        ] {
            assert_eq!(local.values(&format!("select {sql}")), [value], "{sql}");
        }
        assert_eq!(
            local.values("insert into t (id) values (1) returning made_at, made_on, touched_at"),
            [moment, "2040-02-29", moment]
        );
        assert_eq!(local.values("select to_char(now() at time zone 'Europe/Berlin', 'HH24:MI')"), ["13:34"]);
    }
}

#[test]
fn times_before_1970_and_far_from_today_are_exact_too() {
    let mut local = isolated(&connections());
    for (time, shown) in [
        (-1, "1969-12-31 23:59:59.999999+00"),
        (-14_182_939_999_999, "1969-07-20 20:17:40.000001+00"),
        (0, "1970-01-01 00:00:00+00"),
        (-62_135_596_800_000_000, "0001-01-01 00:00:00+00"),
        (253_402_300_799_999_999, "9999-12-31 23:59:59.999999+00"),
    ] {
        set(&local, ClockSetting::Frozen(Some(time)));
        assert_eq!(local.values("select now(), clock_timestamp()"), [shown, shown]);
    }
    for setting in [ClockSetting::At(i64::MAX), ClockSetting::By(HOUR), ClockSetting::Frozen(Some(i64::MIN))] {
        let refusal = try_to_set(&local, setting).expect_err("it is out of range");
        assert_eq!(refusal.code, sqlstate::DATETIME_FIELD_OVERFLOW);
    }
    assert_eq!(local.values("select now()"), ["9999-12-31 23:59:59.999999+00"], "nothing has changed");
}

#[test]
fn a_clock_goes_on_from_where_it_is_set_until_it_goes_back() {
    let mut local = isolated(&connections());
    let ahead = "select extract(epoch from clock_timestamp() - timestamptz '2040-02-29 12:34:56.123457+00')";
    set(&local, ClockSetting::At(LEAP_DAY));
    let times: Vec<f64> = (0..3).map(|_| local.values(ahead)[0].parse().expect("a number")).collect();
    assert!(times.is_sorted_by(|a, b| a < b) && times[0] > 0.0 && times[2] < 60.0, "{times:?}");
    set(&local, ClockSetting::By(-2 * HOUR));
    let time: f64 = local.values(ahead)[0].parse().expect("a number");
    assert!((-7200.0..-7140.0).contains(&time), "{time}");
    set(&local, ClockSetting::Real);
    let real = jiff::Timestamp::now().as_second();
    let shown: f64 = local.values("select extract(epoch from now())")[0].parse().expect("a number");
    assert!((shown - f64::from(i32::try_from(real).expect("before 2038"))).abs() < 60.0, "{shown}");
}

#[test]
fn now_stays_what_it_is_in_a_transaction_during_which_the_clock_is_set() {
    let mut local = isolated(&connections());
    set(&local, ClockSetting::Frozen(Some(LEAP_DAY)));
    local.values("begin");
    set(&local, ClockSetting::Frozen(Some(LEAP_DAY + HOUR)));
    assert_eq!(
        local.values("select now(), statement_timestamp() - now(), clock_timestamp() - now()"),
        ["2040-02-29 12:34:56.123457+00", "01:00:00", "01:00:00"]
    );
    local.values("commit");
    assert_eq!(local.values("select now()"), ["2040-02-29 13:34:56.123457+00"]);
}

#[test]
fn a_clock_stays_set_across_resets_and_is_that_of_one_cluster_only() {
    let connections = connections();
    let (mut local, mut other) = (isolated(&connections), isolated(&connections));
    set(&local, ClockSetting::Frozen(Some(LEAP_DAY)));
    for _ in 0..3 {
        local.reset();
        assert_eq!(local.values("select now()"), ["2040-02-29 12:34:56.123457+00"]);
    }
    assert_eq!(other.values("select now() < '2040-01-01'"), ["t"]);
    set(&local, ClockSetting::Real);
    local.reset();
    assert_eq!(local.values("select now() < '2040-01-01'"), ["t"]);
}

#[test]
fn all_sessions_of_a_shared_cluster_have_its_clock_those_that_come_later_too() {
    let connections = connections();
    let (mut one, mut two) = (shared(&connections), shared(&connections));
    set(&one, ClockSetting::Frozen(Some(LEAP_DAY)));
    let mut three = shared(&connections);
    for session in [&mut one, &mut two, &mut three] {
        assert_eq!(session.values("select clock_timestamp()"), ["2040-02-29 12:34:56.123457+00"]);
    }
    set(&three, ClockSetting::Real);
    assert_eq!(one.values("select now() < '2040-01-01'"), ["t"]);
}

#[test]
fn pg_sleep_takes_its_time_whatever_the_clock_does() {
    let mut local = isolated(&connections());
    set(&local, ClockSetting::Frozen(Some(LEAP_DAY)));
    local.values("select pg_sleep(0.05), pg_sleep_for('50 ms')");
    for setting in SETTINGS {
        let (errors, took) = set_while_it_runs(&mut local, "perform pg_sleep(0.2)", setting);
        assert!(errors.is_empty() && took >= Duration::from_millis(200), "{setting:?}: {errors:?}, {took:?}");
    }
}

#[test]
fn statement_timeout_takes_its_time_whatever_the_clock_does() {
    let mut local = isolated(&connections());
    local.values("set statement_timeout = '200ms'");
    for setting in SETTINGS {
        for sql in ["perform pg_sleep(1000)", "loop null; end loop"] {
            let (errors, took) = set_while_it_runs(&mut local, sql, setting);
            assert_eq!(errors, ["57014"], "{setting:?}, {sql}");
            assert!(took >= Duration::from_millis(200), "{setting:?}, {sql}: {took:?}");
        }
    }
    set(&local, ClockSetting::Frozen(Some(LEAP_DAY)));
    assert_eq!(errors(&local.query("select pg_sleep(1000)")), ["57014"]);
}

#[test]
fn timeouts_of_idle_sessions_and_of_transactions_take_their_time_whatever_the_clock_does() {
    let connections = connections();
    for setting in SETTINGS {
        for (name, sql, code) in [
            ("idle_session_timeout", "select 1", "57P05"),
            ("idle_in_transaction_session_timeout", "begin", "25P03"),
            ("transaction_timeout", "begin", "25P04"),
        ] {
            let mut local = isolated(&connections);
            local.values(&format!("set {name} = '200ms'"));
            let began = Instant::now();
            local.values(sql);
            // On a machine that is busy enough, the session may have ended.
            let _ = try_to_set(&local, setting);
            assert_eq!(errors(&local.until_ready()), [code], "{name}, {setting:?}");
            assert!(began.elapsed() >= Duration::from_millis(200), "{name}, {setting:?}: {:?}", began.elapsed());
        }
    }
}

#[test]
fn lock_timeout_takes_its_time_and_a_wait_is_shown_by_the_clock() {
    let connections = connections();
    let (mut owner, mut waiting) = (shared(&connections), shared(&connections));
    owner.values("create table t (a int)");
    owner.values("begin; lock table t");
    waiting.values("set lock_timeout = '200ms'");
    for setting in SETTINGS {
        let (errors, took) = set_while_it_runs(&mut waiting, "lock table t", setting);
        assert_eq!(errors, ["55P03"], "{setting:?}");
        assert!(took >= Duration::from_millis(200), "{setting:?}: {took:?}");
    }
    set(&owner, ClockSetting::Frozen(Some(LEAP_DAY)));
    waiting.values("set lock_timeout = 0");
    waiting.send(&support::wire::query("select 1 from t"));
    let waits = "select waitstart from pg_locks where not granted and waitstart is not null";
    let since = until_there_are_rows(&mut owner, waits);
    assert_eq!(since, ["2040-02-29 12:34:56.123457+00"]);
    owner.values("commit");
    waiting.until_ready();
}

#[test]
fn a_deadlock_is_found_whatever_the_clock_does() {
    let connections = connections();
    for setting in SETTINGS {
        let (mut one, mut two) = (shared(&connections), shared(&connections));
        one.values("set deadlock_timeout = '200ms'; begin; select pg_advisory_xact_lock(1)");
        two.values("set deadlock_timeout = '10s'; begin; select pg_advisory_xact_lock(2)");
        two.send(&support::wire::query("select pg_advisory_xact_lock(1)"));
        until_there_are_rows(&mut one, "select 1 from pg_locks where not granted");
        let (errors, took) = set_while_it_runs(&mut one, "perform pg_advisory_xact_lock(2)", setting);
        assert_eq!(errors, ["40P01"], "{setting:?}");
        assert!(took >= Duration::from_millis(200), "{setting:?}: {took:?}");
    }
}

#[test]
fn autovacuum_goes_by_real_time_and_hears_of_what_sessions_do_at_a_frozen_clock() {
    let connections = connections();
    let mut local = shared(&connections);
    set(&local, ClockSetting::Frozen(Some(LEAP_DAY)));
    // Sessions tell at most once a second what they have changed.
    local.values("create table t (n int)");
    local.values("insert into t select generate_series(1, 1000)");
    local.values("delete from t where n <= 900");
    let done = "select last_autovacuum < '2040-01-01' from pg_stat_user_tables \
        where relname = 't' and last_autovacuum is not null";
    assert_eq!(until_there_are_rows(&mut local, done), ["t"]);
}

#[test]
fn a_log_of_lock_waits_has_their_real_durations() {
    let connections = connections();
    let (sender, lines) = channel();
    let log = LogSink::new(move |_, _, _, text| drop(sender.send(text.to_owned())));
    let mut owner = shared(&connections);
    owner.values("select pg_advisory_lock(1)");
    let mut waiting = Local::start_with_log(&connections, Connect { mode: Mode::Shared, ..Connect::default() }, log);
    waiting.until_ready();
    waiting.values("set log_lock_waits = on; set deadlock_timeout = '50ms'");
    set(&owner, ClockSetting::Frozen(Some(LEAP_DAY)));
    waiting.send(&support::wire::query("select pg_advisory_lock(1)"));
    let wait = loop {
        let line = lines.recv_timeout(support::PATIENCE).expect("a line");
        if let Some((_, after)) = line.split_once("still waiting for ExclusiveLock on advisory lock") {
            break after.to_owned();
        }
    };
    let milliseconds = wait.split_once("after ").and_then(|(_, after)| after.split_once(" ms")).expect("a duration").0;
    let milliseconds: f64 = milliseconds.parse().expect("a number");
    assert!((50.0..60_000.0).contains(&milliseconds), "{wait}");
    owner.values("select pg_advisory_unlock(1)");
    waiting.until_ready();
}

#[test]
fn replication_slots_are_idle_for_real_time_and_wal_segments_end_after_real_time() {
    let further = [("idle_replication_slot_timeout", "1d"), ("archive_timeout", "1s")];
    let further = further.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let shared_settings = SharedSettings { further, ..SharedSettings::default() };
    let leave = Leave { clock: true, seed: false };
    let connections = cache::connections(Settings { leave, shared: shared_settings, ..Settings::default() });
    let mut local = shared(&connections);
    // By this clock the slot would have been idle for long, for the checkpointer.
    set(&local, ClockSetting::Frozen(Some(1_000_000_000_000_000)));
    local.values("select pg_create_physical_replication_slot('s', true)");
    local.values("checkpoint");
    let slot = "select invalidation_reason is null, inactive_since > '2020-01-01' from pg_replication_slots";
    assert_eq!(local.values(slot), ["t", "t"]);
    // By this one, the segment would have begun in the future.
    set(&local, ClockSetting::Frozen(Some(LEAP_DAY)));
    let segment = local.values(
        "create table t (); select pg_switch_wal(); create table u (); \
        select pg_walfile_name(pg_current_wal_insert_lsn())",
    );
    let segment = segment.last().expect("a name");
    until_there_are_rows(
        &mut local,
        &format!("select 1 where pg_walfile_name(pg_current_wal_insert_lsn()) > '{segment}'"),
    );
}

#[test]
fn without_leave_a_clock_cannot_be_set_and_the_error_says_what_to_do() {
    let connections = cache::connections(Settings { leave: Leave { clock: false, seed: true }, ..Settings::default() });
    for mut local in [isolated(&connections), shared(&connections)] {
        let refusal = try_to_set(&local, ClockSetting::Frozen(Some(LEAP_DAY))).expect_err("there is no leave");
        assert_eq!((refusal.code, refusal.message.as_str()), ("42501", "permission denied to set the clock"));
        assert!(refusal.hint.as_deref().is_some_and(|hint| hint.contains("--allow-clock")), "{refusal:?}");
        assert_eq!(local.values("select now() < '2040-01-01'"), ["t"]);
    }
}
