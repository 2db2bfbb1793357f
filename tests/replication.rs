//! Replication connections: who gets one, what it sends, and how it ends.

mod support;

use std::time::{Duration, Instant};

use postgres::Client;
use support::{
    logical::Decoder,
    place::Place,
    server::{Server, rows, wait_for_rows},
    session::{Session, errors},
    walsender::{Receiver, base_backup},
    wire::Message,
};

const LOGICAL: [&str; 2] = ["--set", "wal_level=logical"];

fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// A replication connection that knows a database.
fn in_database(server: &Server) -> Session {
    server.session(&[("replication", "database"), ("database", "postgres")])
}

/// Starts to receive the changes of publication `p`, with a new slot `s`.
fn subscribe(server: &Server) -> Receiver {
    let mut session = in_database(server);
    session.values("CREATE_REPLICATION_SLOT s LOGICAL pgoutput (SNAPSHOT 'nothing')");
    resume(session)
}

fn resume(session: Session) -> Receiver {
    let command = "START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '1', publication_names 'p')";
    Receiver::start(session, command)
}

/// The changes of rows among the messages until the end of the replication, or until one with `last`.
fn changes(receiver: &mut Receiver, decoder: &mut Decoder, last: Option<&str>) -> Vec<String> {
    let mut changes = Vec::new();
    while let Some(message) = receiver.next() {
        changes.extend(decoder.read(&message).into_iter().filter(|text| text.starts_with(['I', 'U', 'D'])));
        if last.is_some_and(|last| changes.last().is_some_and(|change| change.contains(last))) {
            return changes;
        }
    }
    assert_eq!(last, None, "the replication has ended after {changes:?}");
    changes
}

/// SQLSTATE, message and hint of the error with which a connection is refused.
fn refused(mut session: Session) -> [String; 3] {
    let messages = session.until_closed();
    let error = messages.iter().find(|message| message.kind == b'E').expect("an error");
    let mut fields = error.fields();
    ['C', 'M', 'H'].map(|field| fields.remove(&field).unwrap_or_default())
}

#[test]
fn a_replication_connection_is_for_roles_with_replication_in_a_cluster_of_several_sessions() {
    let server = Server::with(&["--set", "max_wal_senders=1"]);
    let mut client = server.connect();
    run(&mut client, "create role plain login; create role copier login replication");
    let mut sender = server.session(&[("replication", "true")]);
    let system = sender.values("IDENTIFY_SYSTEM");
    assert_eq!(system, rows(&mut client, "select system_identifier from pg_control_system()"));
    let kind = "select backend_type from pg_stat_activity where backend_type = 'walsender'";
    assert_eq!(rows(&mut client, kind), ["walsender"]);
    let role = |name| server.unready_session(&[("user", name), ("replication", "true")]);
    assert_eq!(refused(role("copier"))[0], "53300", "there is one already");
    drop(sender);
    wait_for_rows(&mut client, kind, &[] as &[&str]);
    let [state, message, _] = refused(role("plain"));
    assert_eq!((&state[..], &message[..]), ("42501", "permission denied to start WAL sender"));
    role("copier").until_ready();

    let isolated = Server::start();
    let [state, message, hint] =
        refused(isolated.unready_session(&[("user", "postgres"), ("replication", "database")]));
    assert_eq!(state, "0A000");
    assert_eq!(message, "a cluster of one connection has no replication connections");
    assert_eq!(hint, "Connect to a cluster that takes several sessions: in mode shared, or with pglite.cluster.");
}

#[test]
fn commits_are_sent_at_once_and_nobody_waits_for_the_subscriber() {
    let server = Server::with(&LOGICAL);
    let mut client = server.connect();
    run(&mut client, "create table t (id int primary key, v text); create publication p for table t");
    let (mut receiver, mut decoder) = (subscribe(&server), Decoder::default());
    for round in 1..=20 {
        run(&mut client, &format!("insert into t values ({round}, 'v{round}')"));
        let expected = format!("I \"public\".\"t\" N (\"{round}\", \"v{round}\")");
        assert_eq!(changes(&mut receiver, &mut decoder, Some("N")), [expected]);
    }
    // An answer is read at once, also when there is nothing to send.
    for _ in 0..5 {
        let end = rows(&mut client, "select pg_logical_emit_message(true, '', '')").remove(0);
        receiver.keep_up(&end);
        let applied = format!("select count(*) from pg_stat_replication where replay_lsn > '{end}'");
        let begun = Instant::now();
        wait_for_rows(&mut client, &applied, &["1"]);
        // The next thing to send comes after 15 seconds.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
    // What it has not read yet, more than the buffers on the way hold, keeps nobody waiting.
    run(&mut client, "insert into t select i, repeat('x', 1000) from generate_series(100, 20000) i");
    assert_eq!(rows(&mut client, "select count(*) from t"), ["19921"]);
    let rest = changes(&mut receiver, &mut decoder, Some("\"20000\""));
    assert_eq!(rest.len(), 19901);
}

#[test]
fn a_slot_is_free_as_soon_as_its_subscriber_is_gone() {
    let server = Server::with(&LOGICAL);
    let mut client = server.connect();
    run(&mut client, "create table t (id int primary key); create publication p for table t");
    let receiver = subscribe(&server);
    let active = "select active from pg_replication_slots";
    wait_for_rows(&mut client, active, &["t"]);
    drop(receiver);
    let begun = Instant::now();
    wait_for_rows(&mut client, active, &["f"]);
    // It would notice when it sends something, after half a minute.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn the_wal_itself_is_sent_from_a_physical_slot() {
    let server = Server::shared();
    let mut client = server.connect();
    run(&mut client, "create table t (v text)");
    let mut session = server.session(&[("replication", "true")]);
    session.values("CREATE_REPLICATION_SLOT s PHYSICAL (RESERVE_WAL)");
    let restart = rows(&mut client, "select restart_lsn from pg_replication_slots where slot_name = 's'").remove(0);
    let mut receiver = Receiver::start(session, &format!("START_REPLICATION SLOT s PHYSICAL {restart}"));
    run(&mut client, "insert into t values ('a text that is found in the WAL')");
    let mut wal = Vec::new();
    while !wal.windows(30).any(|part| part == b"a text that is found in the WA") {
        wal.extend(receiver.next().expect("more WAL"));
    }
    receiver.acknowledge();
    let flushed = "select count(*) from pg_stat_replication where flush_lsn is not null";
    wait_for_rows(&mut client, flushed, &["1"]);
}

/// Stops a program after a commit, while a subscriber reads.
fn stop_after_a_commit(arguments: &[&str]) -> Vec<String> {
    let server = Server::with(&[&LOGICAL[..], arguments].concat());
    let mut client = server.connect();
    run(&mut client, "create table t (id int primary key); create publication p for table t");
    let mut receiver = subscribe(&server);
    // Idle senders end as well.
    let mut idle = in_database(&server);
    // More than the buffers on the way hold.
    run(
        &mut client,
        "alter table t add v text; insert into t select i, repeat('x', 2000) from generate_series(1, 10000) i",
    );
    run(&mut client, "insert into t values (77777)");
    let stopped = std::thread::spawn(move || server.stop());
    let changes = changes(&mut receiver, &mut Decoder::default(), None);
    assert_eq!(errors(&idle.until_closed()), ["57P01"]);
    let said = stopped.join().expect("it stops");
    assert!(said.iter().all(|line| !line.contains("recovers at its next start")), "{said:?}");
    changes
}

#[test]
fn a_program_that_stops_sends_everything_first() {
    let place = Place::new();
    let (in_memory, in_directory) = (stop_after_a_commit(&[]), stop_after_a_commit(&["--data", &place.text("data")]));
    for changes in [in_memory, in_directory] {
        assert_eq!(changes.len(), 10001);
        assert!(changes[10000].contains("77777"), "{}", changes[10000]);
    }
    // The slot is there after the restart, and nothing comes twice that was acknowledged.
    let server = Server::with(&[&LOGICAL[..], &["--data", &place.text("data")]].concat());
    let mut client = server.connect();
    let mut receiver = resume(in_database(&server));
    run(&mut client, "insert into t values (88888)");
    let changes = changes(&mut receiver, &mut Decoder::default(), Some("88888"));
    assert_eq!(changes, ["I \"public\".\"t\" N (\"88888\", n)"]);
}

#[test]
fn a_subscriber_that_receives_nothing_is_cut_off_in_time_for_the_shutdown_checkpoint() {
    let place = Place::new();
    let server = Server::with(&[&LOGICAL[..], &["--data", &place.text("data")]].concat());
    let mut client = server.connect();
    run(&mut client, "create table t (id int primary key, v text); create publication p for table t");
    let receiver = subscribe(&server);
    // More than the buffers on the way hold.
    run(&mut client, "insert into t select i, repeat('x', 2000) from generate_series(1, 20000) i");
    let said = server.stop();
    assert!(said.iter().any(|line| line.contains("subscribers are cut off")), "{said:?}");
    assert!(said.iter().all(|line| !line.contains("recovers at its next start")), "{said:?}");
    drop(receiver);
    // It gets everything when it comes again.
    let server = Server::with(&[&LOGICAL[..], &["--data", &place.text("data")]].concat());
    let mut receiver = resume(in_database(&server));
    let all = changes(&mut receiver, &mut Decoder::default(), Some("(\"20000\""));
    assert_eq!(all.len(), 20000);
}

#[test]
fn a_base_backup_with_its_wal_is_a_cluster_that_another_program_opens() {
    let (server, place) = (Server::shared(), Place::new());
    let mut client = server.connect();
    run(&mut client, "create table t as select generate_series(1, 1000) as i");
    let mut session = server.session(&[("replication", "true")]);
    let archive = base_backup(&mut session, "LABEL 'a test', CHECKPOINT 'fast', WAL true, MANIFEST 'yes'");
    run(&mut client, "insert into t values (2000)");
    let data = place.path("copy");
    tar::Archive::new(&archive[..]).unpack(&data).expect("an archive");
    let copy = Server::in_directory(&data);
    assert_eq!(rows(&mut copy.connect(), "select count(*), max(i) from t"), ["1000|1000"]);
}

/// The changes of slot `s` as text.
fn decoded(client: &mut Client, options: &str) -> Vec<String> {
    let sql = format!(
        "select data from pg_logical_slot_get_binary_changes('s', null, null, 'proto_version', '4', {options})"
    );
    let mut decoder = Decoder::default();
    client.query(&sql, &[]).expect(&sql).iter().flat_map(|row| decoder.read(row.get(0))).collect()
}

#[test]
fn generated_columns_are_published_if_they_are_stored_and_wanted() {
    let server = Server::with(&LOGICAL);
    let mut client = server.connect();
    run(
        &mut client,
        "create table t (id int primary key, twice int generated always as (id * 2) stored, v int generated always as (id * 3));
         create publication with_them for table t with (publish_generated_columns = stored);
         create publication without for table t; create publication listed for table t (id, twice)",
    );
    run(&mut client, "select pg_create_logical_replication_slot('s', 'pgoutput')");
    for (publication, expected) in
        [("with_them", "N (\"1\", \"2\")"), ("without", "N (\"2\")"), ("listed", "N (\"3\", \"6\")")]
    {
        run(&mut client, "insert into t values ((select count(*) + 1 from t))");
        let changes = decoded(&mut client, &format!("'publication_names', '{publication}'"));
        assert!(changes.iter().any(|change| change.ends_with(expected)), "{publication}: {changes:?}");
    }
}

#[test]
fn a_publication_that_is_renamed_is_looked_for_under_its_name() {
    let server = Server::with(&LOGICAL);
    let mut client = server.connect();
    run(&mut client, "create table t (id int primary key); create publication p for table t");
    run(&mut client, "select pg_create_logical_replication_slot('s', 'pgoutput')");
    for sql in [
        "insert into t values (1)",
        "alter publication p rename to q",
        "insert into t values (2)",
        "alter publication q rename to p",
        "insert into t values (3)",
    ] {
        run(&mut client, sql);
    }
    let changes = decoded(&mut client, "'publication_names', 'p'");
    let rows: Vec<&String> = changes.iter().filter(|change| change.starts_with('I')).collect();
    assert_eq!(rows, ["I \"public\".\"t\" N (\"1\")", "I \"public\".\"t\" N (\"3\")"]);
}

#[test]
fn an_error_while_changes_are_decoded_ends_in_an_error_of_the_command() {
    let server = Server::with(&LOGICAL);
    let mut client = server.connect();
    run(&mut client, "select pg_create_logical_replication_slot('s', 'pgoutput')");
    let mut session = in_database(&server);
    session.query("START_REPLICATION SLOT s LOGICAL 0/0 (proto_version '99', publication_names 'p')");
    assert_eq!(errors(&session.until_ready()), ["0A000"]);
    session.query("START_REPLICATION SLOT other LOGICAL 0/0 (proto_version '1', publication_names 'p')");
    assert_eq!(errors(&session.until_ready()), ["42704"]);
    assert_eq!(session.values("select 1"), ["1"], "SQL over the same connection");
    let unknown: Vec<Message> = {
        session.query("NONSENSE");
        session.until_ready()
    };
    assert_eq!(errors(&unknown), ["42601"]);
}
