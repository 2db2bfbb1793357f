//! Hostile statements that are cancelled, and sessions with them that are told to end, at random moments: no cluster has
//! to recover, and nothing is left of them.
//!
//! In turns of 200 µs everything that a session is given time for takes a twenty-fifth of the time.

#[path = "../benches/support/hostile.rs"]
mod hostile;
mod support;

use std::{thread, time::Duration};

use hostile::Hostile;
use support::{
    peer::{LOCKS_OF_OTHERS, Peer},
    power::{self, Dice},
    server::Server,
};

/// How often each statement is stopped.
const TIMES: u32 = 6;

/// Runs the statement in a session of its own until it is stopped, [`TIMES`] times; returns how often it was. `setup`
/// is what the statement needs.
fn stop(server: &Server, other: &Peer, statement: &Hostile, setup: &str, dice: &mut Dice) -> u32 {
    let Hostile { what, sql, .. } = statement;
    let (mut stopped, mut busy) = (0, None);
    for time in 0..TIMES {
        let session = busy.take().unwrap_or_else(|| {
            let session = Peer::of(server, "hostile", "postgres");
            session.send(setup);
            // It may have been done before.
            assert!(session.answer().is_ok() || session.run("select 'alive'") == ["alive"], "{what}");
            session
        });
        session.send(sql);
        // At any moment, also before the statement has begun.
        thread::sleep(Duration::from_micros(dice.below(300_000)));
        let function = if time % 2 == 0 { "pg_cancel_backend" } else { "pg_terminate_backend" };
        other.run(&format!("select {function}({})", session.process_id));
        match session.answer() {
            Ok(_) if function == "pg_cancel_backend" => busy = Some(session),
            // It had ended before it was told to.
            Ok(_) => {}
            Err(error) => {
                let code = error.sqlstate();
                let is_stopped = matches!(code, "57014" | "57P01");
                assert!(is_stopped || !error.has_ended, "{what}: {error:?}");
                stopped += u32::from(is_stopped);
                if !error.has_ended {
                    session.send("rollback; reset all");
                    busy = session.answer().is_ok().then_some(session);
                }
            }
        }
    }
    stopped
}

#[test]
fn hostile_statements_are_stopped_at_any_moment_and_nothing_is_left_of_them() {
    let all = hostile::statements();
    let count = usize::try_from(power::number("PGLITE_PORT_HOSTILE", 4)).expect("few").min(all.len());
    let mut dice = Dice(power::seed());
    let server = Server::with(&["--mode", "shared", "--slice", "200"]);
    let other = Peer::connect(&server);
    other.run("create extension pg_buffercache");
    other.run("create role hostile login; grant create on schema public to hostile; grant create on database postgres to hostile");
    let first = usize::try_from(dice.below(all.len() as u64)).expect("few");
    let mut stopped = 0;
    for number in 0..count {
        let at = (first + number * all.len() / count) % all.len();
        // Some need the table of one before them.
        let setup = all[..=at].iter().rev().map(|statement| &statement.setup[..]).find(|setup| !setup.is_empty());
        let times = stop(&server, &other, &all[at], setup.unwrap_or_default(), &mut dice);
        println!("stopped {times} of {TIMES} times: {}", all[at].what);
        stopped += times;
    }
    assert!(stopped > 0, "none was stopped");
    other.until(&format!("select ({LOCKS_OF_OTHERS}) = 0"));
    other.until("select not exists (select from pg_buffercache where pinning_backends > 0)");
    other.run("vacuum");
}
