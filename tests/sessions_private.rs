//! What belongs to one session and is nobody else's, and what a session is started with.

mod support;

use support::{peer::Peer, server::Server};

#[test]
fn temporary_tables_of_the_same_name_are_different_tables() {
    let (server, one, two) = Peer::two();
    one.run("create temp table mine (a int); insert into mine values (1)");
    assert_eq!(two.fail("select * from mine"), "42P01");
    two.run("create temp table mine (b text); insert into mine values ('two')");
    assert_eq!((one.value("select * from mine"), two.value("select * from mine")), ("1".into(), "two".into()));
    let tables = "select count(*) from pg_class where relname = 'mine'";
    assert_eq!(two.value(tables), "2");
    drop(one);
    two.until("select count(*) = 1 from pg_class where relname = 'mine'");
    // Another session may get the schema of the one that is gone.
    assert_eq!(Peer::connect(&server).fail("select * from mine"), "42P01");
}

#[test]
fn a_temporary_table_can_be_gone_with_the_transaction_and_hides_a_lasting_one() {
    let (_server, one, two) = Peer::two();
    one.run("create table t as select 'lasting' as kind");
    two.run("begin; create temp table t on commit drop as select 'temporary' as kind");
    assert_eq!(
        (one.value("select kind from t"), two.value("select kind from t")),
        ("lasting".into(), "temporary".into())
    );
    two.run("commit");
    assert_eq!(two.value("select kind from t"), "lasting");
}

#[test]
fn prepared_statements_cursors_and_settings_are_private() {
    let (_server, one, two) = Peer::two();
    one.run("prepare q as select 'one'; begin; declare c cursor with hold for select generate_series(1, 3); commit");
    one.run("set work_mem = '7MB'; set my.own = 'x'; set time zone 'Asia/Tokyo'");
    assert_eq!(two.fail("execute q"), "26000");
    assert_eq!(two.fail("fetch c"), "34000");
    two.run("prepare q as select 'two'");
    assert_eq!((one.value("execute q"), two.value("execute q")), ("one".into(), "two".into()));
    assert_eq!(one.run("fetch 2 from c"), ["1", "2"]);
    assert_eq!((one.value("show work_mem"), two.value("show work_mem")), ("7MB".into(), "4MB".into()));
    assert_eq!(two.value("select current_setting('my.own', true) is null"), "t");
    assert_eq!((one.value("show time zone"), two.value("show time zone")), ("Asia/Tokyo".into(), "UTC".into()));
    one.run("discard all");
    assert_eq!(one.fail("fetch c"), "34000");
    assert_eq!(one.value("show work_mem"), "4MB");
}

#[test]
fn a_sequence_is_shared_and_its_last_value_is_not() {
    let (_server, one, two) = Peer::two();
    one.run("create sequence s");
    assert_eq!((one.value("select nextval('s')"), two.value("select nextval('s')")), ("1".into(), "2".into()));
    assert_eq!((one.value("select currval('s')"), two.value("select lastval()")), ("1".into(), "2".into()));
}

#[test]
fn no_two_sessions_draw_the_same_random_numbers() {
    let (_server, one, two) = Peer::two();
    for random in [
        "select random()",
        "select gen_random_uuid()",
        "select string_agg(random()::text, ' ') from generate_series(1, 5)",
    ] {
        assert_ne!(one.value(random), two.value(random));
    }
    one.run("select setseed(0.5)");
    two.run("select setseed(0.5)");
    assert_eq!(one.value("select random()"), two.value("select random()"));
}

#[test]
fn a_session_starts_with_what_its_startup_packet_says() {
    let server = Server::shared();
    let mut config = server.config();
    config.application_name("the application").options("-c work_mem=5MB -c search_path=nowhere");
    let peer = Peer::with(&config).unwrap();
    assert_eq!(peer.value("show application_name"), "the application");
    assert_eq!(peer.value("show work_mem"), "5MB");
    assert_eq!(peer.value("show search_path"), "nowhere");
    assert_eq!(
        peer.value(&format!("select application_name from pg_stat_activity where pid = {}", peer.process_id)),
        "the application"
    );
    assert_eq!(Peer::refused(server.config().options("-c no.such_setting")), "42601");
    assert_eq!(Peer::refused(server.config().options("-c work_mem=much")), "22023");
    let recent = "select backend_start between now() - interval '1 minute' and now() from pg_stat_activity \
                  where pid = pg_backend_pid()";
    assert_eq!(peer.value(recent), "t");
}

#[test]
fn a_session_starts_with_the_settings_of_its_role_and_its_database() {
    let server = Server::shared();
    let admin = Peer::connect(&server);
    admin.run("create role app login");
    admin.run("create database shop");
    admin.run("alter role app set work_mem = '6MB'; alter database shop set statement_timeout = '77s'");
    admin.run("alter role app in database shop set lock_timeout = '5s'");
    let settings = "select concat_ws(' ', current_setting('work_mem'), current_setting('statement_timeout'), \
                    current_setting('lock_timeout'), session_user, current_database())";
    assert_eq!(Peer::of(&server, "app", "shop").value(settings), "6MB 77s 5s app shop");
    assert_eq!(Peer::of(&server, "app", "postgres").value(settings), "6MB 0 0 app postgres");
    assert_eq!(Peer::of(&server, "postgres", "shop").value(settings), "4MB 77s 0 postgres shop");
    let mut config = server.config();
    config.user("app").options("-c work_mem=9MB");
    assert_eq!(Peer::with(&config).unwrap().value("show work_mem"), "9MB", "the client's word is the last");
}

#[test]
fn no_session_starts_for_a_role_or_a_database_that_is_not_there_or_not_open() {
    let server = Server::shared();
    let admin = Peer::connect(&server);
    admin.run("create role nobody nologin; create role few login connection limit 1");
    admin.run("create database closed allow_connections false");
    admin.run("create database private");
    admin.run("revoke connect on database private from public");
    let refused = |user: &str, database: &str| Peer::refused(server.config().user(user).dbname(database));
    assert_eq!(refused("unknown", "postgres"), "28000");
    assert_eq!(refused("nobody", "postgres"), "28000");
    assert_eq!(refused("postgres", "unknown"), "3D000");
    assert_eq!(refused("postgres", "closed"), "55000");
    let _first = Peer::of(&server, "few", "postgres");
    assert_eq!(refused("few", "postgres"), "53300");
    admin.run("create role outsider login");
    assert_eq!(refused("outsider", "private"), "42501");
    Peer::of(&server, "postgres", "private").run("select 1");
}
