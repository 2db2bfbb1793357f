//! The system's limit of memory mappings (`vm.max_map_count`). The only test of its file, because the limit is that of
//! the whole process.

mod support;

use std::sync::Arc;

use pglite_port::{
    administration::{Administration, ClusterOrigin, NewCluster},
    connection::Connections,
    databases::{Settings, SharedSettings},
};
use support::{
    cache,
    library::{export, with_functions},
    local::{Connect, Local},
    mappings::{Filling, limit_and_margin},
    process,
    wire::Message,
};
use wasm_encoder::Instruction;

/// Connects isolated clients until one is refused; these, and what that one was told.
fn fill(connections: &Arc<Connections>) -> (Vec<Local>, [String; 2]) {
    let mut sessions = Vec::new();
    loop {
        let (session, messages) = Local::connect(connections, Connect::default());
        if let Some(report) = messages.iter().find(|message| message.kind == b'E') {
            let fields = report.fields();
            return (sessions, ['C', 'H'].map(|field| fields[&field].clone()));
        }
        sessions.push(session);
        assert!(sessions.len() < 4000, "the limit is not reached");
    }
}

#[test]
fn clusters_and_sessions_are_refused_before_the_mappings_are_exhausted_and_the_others_go_on() {
    let (limit, margin) = limit_and_margin();
    // Launchers would take the mappings that are given back for a checkpointer.
    let shared = SharedSettings { autovacuum: false, ..SharedSettings::default() };
    let (databases, connections) =
        cache::administered(Settings { user_libraries: true, shared, ..Settings::default() });
    let create = |name: &str| {
        let origin = ClusterOrigin::Template("postgres".to_owned());
        databases.create_cluster(NewCluster { name: Some(name.to_owned()), origin, ..NewCluster::default() })
    };
    let used = || process::mappings(std::process::id());
    // Before the program counts its mappings for the first time.
    let (filling, reserve) = (Filling::of(limit - margin - used() - 8000), Filling::of(2000));
    create("before").expect("a cluster");
    let mut session = Local::connect_to(&connections, "before");
    session.values("CREATE TABLE t AS SELECT 1 AS a");
    let mut sessions = Vec::new();
    let refusal = (0..1000).find_map(|number| {
        let name = format!("cluster{number}");
        if let Err(report) = create(&name) {
            return Some((report.code.to_owned(), report.hint.unwrap_or_default()));
        }
        let connect = Connect { cluster: Some(&name), ..Connect::default() };
        let (session, messages) = Local::connect(&connections, connect);
        sessions.push(session);
        let fields = messages.iter().find(|message| message.kind == b'E').map(Message::fields);
        fields.map(|fields| (fields[&'C'].clone(), fields[&'H'].clone()))
    });
    let (code, hint) = refusal.expect("the limit is reached");
    let full = used();
    assert!(
        !sessions.is_empty() && full + margin * 3 / 4 < limit,
        "{full} of {limit} with {} sessions",
        sessions.len()
    );
    assert!(["53000", "53300"].contains(&&code[..]), "of a cluster or a session: {code}");
    assert!(hint.contains("vm.max_map_count"), "{hint}");
    // What runs has mappings to spare.
    for session in sessions.iter_mut().rev().skip(1).chain([&mut session]) {
        session.values("CREATE TABLE IF NOT EXISTS u AS SELECT n, repeat('x', 100) FROM generate_series(1, 1000) n");
    }
    // Checkpointers are started when they are wanted first, if there are mappings, which leaves others to spare.
    let more = Filling::of((limit - margin / 2).saturating_sub(used() + 500).max(2));
    let is_refused = |session: &mut Local| {
        session.values("SET statement_timeout = '3s'");
        let messages = session.query("CHECKPOINT");
        let code = messages.iter().find(|message| message.kind == b'E').map(|report| report.fields()[&'C'].clone());
        assert!(code.as_ref().is_none_or(|code| code == "57014"), "{code:?}");
        code.is_some() && used() + margin / 2 + 200 > limit
    };
    let waiting = sessions
        .iter_mut()
        .rev()
        .skip(1)
        .find_map(|session| is_refused(session).then_some(session))
        .expect("too few mappings for a checkpointer of each");
    assert!(used() + margin / 4 < limit, "{} of {limit} with checkpointers", used());
    drop((more, reserve));
    waiting.values("RESET statement_timeout");
    waiting.values("CHECKPOINT");
    sessions.clear();
    // The same with clients that have a cluster each.
    let (mut isolated, [code, hint]) = fill(&connections);
    let full = used();
    assert!(isolated.len() > 10 && full + margin * 3 / 4 < limit, "{full} of {limit} with {} clients", isolated.len());
    assert!(code == "53300" && hint.contains("vm.max_map_count"), "{code} {hint}");
    // Libraries have a little more room than clients, and an end as well.
    let refused = (1..200).find_map(|number| {
        let answer = [Instruction::I32Const(number)];
        let path = format!("/tmp/{number}.so");
        isolated[0].values(&export(&with_functions(&[("answer", &answer)]), &path));
        let messages = isolated[0].query(&format!("LOAD '{path}'"));
        messages.iter().find(|message| message.kind == b'E').map(|report| report.fields()[&'M'].clone())
    });
    assert!(refused.as_ref().is_some_and(|message| message.contains("too many memory mappings")), "{refused:?}");
    for session in &mut isolated {
        session.values("CREATE TABLE u AS SELECT n, repeat('x', 100) FROM generate_series(1, 1000) n");
    }
    drop((isolated, filling));
    create("after").expect("a cluster");
    assert_eq!(Local::connect_to(&connections, "after").values("SELECT 1"), ["1"]);
}
