//! LISTEN and NOTIFY between sessions.

mod support;

use std::time::Duration;

use postgres::{Client, fallible_iterator::FallibleIterator};
use support::{PATIENCE, peer::Peer, server::Server};

/// Waits for that many notifications; `channel:payload` of each.
fn notifications(client: &mut Client, count: usize) -> Vec<String> {
    let mut notifications = client.notifications();
    let mut next = notifications.timeout_iter(PATIENCE).take(count);
    let mut received = Vec::new();
    while let Some(notification) = next.next().expect("the session goes on") {
        received.push(format!("{}:{}", notification.channel(), notification.payload()));
    }
    assert_eq!(received.len(), count, "not all came in time");
    received
}

/// Asserts that nothing came, as far as what was sent before is concerned.
fn assert_no_more(client: &mut Client) {
    client.simple_query("select 1").expect("a live session");
    assert!(client.notifications().timeout_iter(Duration::ZERO).next().expect("a live session").is_none());
}

fn thousand() -> Vec<String> {
    (1..=1000).map(|n| format!("news:{n}")).collect()
}

#[test]
fn an_idle_session_gets_a_thousand_notifications_in_order() {
    let server = Server::shared();
    let (mut listener, sender) = (server.connect(), Peer::connect(&server));
    listener.batch_execute("listen news").unwrap();
    sender.run("select pg_notify('news', n::text) from generate_series(1, 1000) n");
    assert_eq!(notifications(&mut listener, 1000), thousand());
    for n in 1..=1000 {
        sender.send(&format!("notify news, '{n}'"));
    }
    assert_eq!(notifications(&mut listener, 1000), thousand());
    assert_no_more(&mut listener);
}

#[test]
fn a_busy_session_gets_its_notifications_when_it_is_idle_again() {
    let server = Server::shared();
    let (mut listener, sender) = (server.connect(), Peer::connect(&server));
    listener.batch_execute("listen news").unwrap();
    sender.run("select pg_notify('news', n::text) from generate_series(1, 500) n");
    // In a transaction nothing is delivered.
    listener.batch_execute("begin; select 1").unwrap();
    sender.run("select pg_notify('news', n::text) from generate_series(501, 1000) n");
    assert_eq!(notifications(&mut listener, 500), thousand()[..500]);
    assert_no_more(&mut listener);
    listener.batch_execute("commit").unwrap();
    assert_eq!(notifications(&mut listener, 500), thousand()[500..]);
}

#[test]
fn notifications_come_with_the_commit_once_and_never_after_a_rollback() {
    let server = Server::shared();
    let (mut listener, sender) = (server.connect(), Peer::connect(&server));
    listener.batch_execute("listen news").unwrap();
    sender.run("begin; notify news, 'lost'; rollback");
    sender.run("begin; notify news, 'twice'; notify news, 'twice'; notify news, 'once'");
    assert_no_more(&mut listener);
    sender.run("commit; notify other, 'unheard'; notify news");
    assert_eq!(notifications(&mut listener, 3), ["news:twice", "news:once", "news:"]);
    listener.batch_execute("unlisten news").unwrap();
    sender.run("notify news, 'late'");
    assert_no_more(&mut listener);
}

#[test]
fn all_listeners_of_the_database_hear_the_sender_too_and_other_databases_do_not() {
    let server = Server::shared();
    let sender = Peer::connect(&server);
    sender.run("create database other");
    let mut listeners: Vec<Client> = (0..10).map(|_| server.connect()).collect();
    let mut stranger = server.config().dbname("other").connect(postgres::NoTls).unwrap();
    for listener in listeners.iter_mut().chain([&mut stranger]) {
        listener.batch_execute("listen news").unwrap();
    }
    listeners[0].batch_execute("notify news, 'from one of us'").unwrap();
    for listener in &mut listeners {
        assert_eq!(notifications(listener, 1), ["news:from one of us"]);
    }
    stranger.batch_execute("notify news, 'at home'").unwrap();
    assert_eq!(notifications(&mut stranger, 1), ["news:at home"]);
    assert_no_more(&mut listeners[9]);
}

#[test]
fn a_listener_that_lags_behind_does_not_stop_the_senders_and_loses_nothing() {
    let server = Server::shared();
    let (mut listener, sender) = (server.connect(), Peer::connect(&server));
    listener.batch_execute("listen news").unwrap();
    listener.batch_execute("begin").unwrap();
    // Several segments of the queue in pg_notify.
    for round in 0..20 {
        let payload = "repeat('x', 7000) || n";
        sender.run(&format!(
            "select pg_notify('news', {payload}) from generate_series({round} * 50 + 1, {round} * 50 + 50) n"
        ));
    }
    assert_ne!(sender.value("select pg_notification_queue_usage()"), "0");
    listener.batch_execute("commit").unwrap();
    let received = notifications(&mut listener, 1000);
    let received: Vec<String> = received.iter().map(|text| text.replace('x', "")).collect();
    assert_eq!(received, thousand());
    sender.until("select pg_notification_queue_usage() = 0");
}
