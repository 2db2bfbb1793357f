//! Who gets in: passwords, rules, and the connections that the program and its parent make for themselves.

mod support;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use pglite_port::{
    administration::{Administration, ClusterOrigin, NewCluster},
    databases::{Access, Authentication, Password, Rules, Settings},
    port::frame::{Kind, Options},
};
use postgres::{Client, Error, NoTls};
use rustix::process::Signal;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use support::{
    PATIENCE,
    authority::Authority,
    cache,
    port::Port,
    program::Program,
    server::{Server, rows, sqlstate, text},
    serving::Serving,
    session::{Session, errors, kinds},
    wire::{self, Message},
};
use tempfile::NamedTempFile;

const SCRAM: [&str; 2] = ["--auth", "scram-sha-256"];

/// Roles with passwords of all kinds.
const ROLES: &str = "
    CREATE ROLE app LOGIN PASSWORD 'app''s';
    CREATE ROLE plain LOGIN PASSWORD 'plain';
    CREATE ROLE past LOGIN PASSWORD 'past' VALID UNTIL '2001-01-01';
    CREATE ROLE full LOGIN PASSWORD 'full' CONNECTION LIMIT 0;
    CREATE ROLE bare LOGIN;
    CREATE ROLE nobody LOGIN PASSWORD 'nobody';
    CREATE ROLE a_group PASSWORD 'group';
    SET password_encryption = md5;
    CREATE ROLE old LOGIN PASSWORD 'old';
    RESET password_encryption;";

const RULES: &str = "
# TYPE  DATABASE  USER    ADDRESS       METHOD
local   all       all                   reject
host    shut      all     all           reject
host    all       nobody  127.0.0.0/8   reject
host    all       old     all           md5
host    all       plain   all           password
host    all       all     all           scram-sha-256
";

fn file(content: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(content.as_bytes()).expect("a disk");
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().expect("text")
}

/// A server whose superuser has the password `secret`, with these arguments.
fn server(arguments: &[&str]) -> Server {
    let password = file("secret\n");
    // The file is gone when the program runs.
    Server::with(&[&["--password-file", path(&password)], arguments].concat())
}

fn connect(server: &Server, user: &str, password: &str, database: &str) -> Result<Client, Error> {
    server.config().user(user).password(password).dbname(database).connect(NoTls)
}

fn superuser(server: &Server) -> Client {
    connect(server, "postgres", "secret", "postgres").expect("a session")
}

/// The SQLSTATE with which a client is refused.
fn refusal(server: &Server, user: &str, password: &str, database: &str) -> String {
    sqlstate(connect(server, user, password, database).map(drop))
}

#[test]
fn the_password_of_the_file_lets_the_superuser_in_and_no_other_does() {
    for mode in ["shared", "isolated"] {
        let server = server(&[&SCRAM[..], &["--mode", mode]].concat());
        assert_eq!(rows(&mut superuser(&server), "select current_user"), ["postgres"], "{mode}");
        for wrong in ["Secret", "secret ", "x"] {
            assert_eq!(refusal(&server, "postgres", wrong, "postgres"), "28P01", "{mode} {wrong:?}");
        }
        // A client that has no password is asked for one, and gets in as nobody.
        let mut session = server.unready_session(&[("user", "postgres")]);
        let asked = session.next().expect("a question");
        assert_eq!((asked.kind, &asked.body[..4]), (b'R', &[0, 0, 0, 10][..]), "{mode}: AuthenticationSASL");
        assert!(asked.body[4..].starts_with(b"SCRAM-SHA-256\0"), "{mode}: {asked:?}");
        session.query("select 1");
        assert_eq!(errors(&session.until_closed()), ["08P01"], "{mode}");
        assert_eq!(rows(&mut superuser(&server), "select 1"), ["1"], "{mode}");
    }
}

#[test]
fn psql_gets_in_with_the_password_and_is_told_why_without() {
    let server = server(&SCRAM);
    let with = |password: Option<&str>| {
        let mut psql = std::process::Command::new("psql");
        psql.args(["-X", "-w", "-A", "-t", "-c", "select current_user", &server.url]).env_remove("PGPASSWORD");
        psql.envs(password.map(|password| ("PGPASSWORD", password))).output().expect("psql is installed")
    };
    assert_eq!(text(&with(Some("secret"))), "postgres");
    let wrong = with(Some("wrong"));
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(told.contains("password authentication failed for user \"postgres\""), "{told}");
    let none = with(None);
    assert!(String::from_utf8_lossy(&none.stderr).contains("no password supplied"), "{none:?}");
}

#[test]
fn rules_and_roles_decide_alike_in_every_kind_of_cluster() {
    let (rules, sql) = (file(RULES), file(ROLES));
    Program::succeed(&["prepare", "authentication-roles", "--sql", path(&sql)]);
    let template = ["--template", "authentication-roles"];
    let directory = tempfile::tempdir().expect("a directory");
    let data = ["--data", directory.path().to_str().expect("text")];
    for (arguments, database) in [
        (&["--mode", "shared"][..], "postgres"),
        (&data[..], "postgres"),
        (&template[..], "authentication-roles"),
        (&["--mode", "isolated"][..], "authentication-roles"),
    ] {
        let server = server(&[&["--auth", path(&rules)], arguments].concat());
        if database == "postgres" {
            let mut superuser = superuser(&server);
            superuser.batch_execute(ROLES).expect("roles");
            superuser.batch_execute("create database shut").expect("a database");
            assert_eq!(refusal(&server, "app", "app's", "shut"), "28000", "{arguments:?}");
        }
        for (user, password) in [("postgres", "secret"), ("app", "app's"), ("plain", "plain"), ("old", "old")] {
            let client = connect(&server, user, password, database);
            let mut client = client.unwrap_or_else(|error| panic!("{arguments:?} {user}: {error:?}"));
            assert_eq!(rows(&mut client, "select session_user"), [user], "{arguments:?}");
            assert_eq!(refusal(&server, user, "wrong", database), "28P01", "{arguments:?} {user}");
        }
        for (user, password, code) in [
            ("past", "past", "28P01"),
            ("bare", "bare", "28P01"),
            ("ghost", "ghost", "28P01"),
            ("full", "full", "53300"),
            ("nobody", "nobody", "28000"),
            ("a_group", "group", "28000"),
        ] {
            assert_eq!(refusal(&server, user, password, database), code, "{arguments:?} {user}");
        }
    }
}

#[test]
fn a_rule_for_unix_sockets_is_not_one_for_addresses() {
    let rules = file("local all all trust\n");
    let directory = tempfile::tempdir().expect("a directory");
    let listen = format!("unix:{}", directory.path().display());
    for mode in ["shared", "isolated"] {
        let arguments = ["serve", "--mode", mode, "--auth", path(&rules), "--listen"];
        let mut program = Program::spawn(&[&arguments[..], &[&listen]].concat());
        let config: postgres::Config = program.first_line().parse().expect("a URL");
        assert_eq!(rows(&mut config.connect(NoTls).expect("a session"), "select 1"), ["1"], "{mode}");
        let server = Server::with(&["--mode", mode, "--auth", path(&rules)]);
        assert_eq!(refusal(&server, "postgres", "", "postgres"), "28000", "{mode}");
    }
}

#[test]
fn a_directory_has_the_password_of_the_last_start_and_its_own_rules_are_left_alone() {
    let data = tempfile::tempdir().expect("a directory");
    let start = |password: &str| {
        let password = file(password);
        let data = ["--data", data.path().to_str().expect("text"), "--password-file", path(&password)];
        Server::with(&[&SCRAM[..], &data].concat())
    };
    let first = start("secret");
    superuser(&first).batch_execute(ROLES).expect("roles");
    first.stop();
    let own_rules = || fs::read_to_string(data.path().join("pg_hba.conf")).expect("rules");
    assert!(own_rules().contains("trust") && !own_rules().contains("scram-sha-256\n"), "{}", own_rules());
    let second = start("another");
    assert_eq!(refusal(&second, "postgres", "secret", "postgres"), "28P01");
    connect(&second, "postgres", "another", "postgres").expect("a session");
    connect(&second, "app", "app's", "postgres").expect("a session");
    second.kill();
    // Without the options the directory's own rules hold, and the password stays stored.
    let third = Server::in_directory(data.path());
    let stored = rows(&mut third.connect(), "select rolpassword from pg_authid where rolname = 'postgres'");
    assert!(stored[0].starts_with("SCRAM-SHA-256$4096:"), "{stored:?}");
}

#[test]
fn the_password_of_another_role_is_set_where_the_role_is() {
    let sql = file(ROLES);
    Program::succeed(&["prepare", "authentication-roles", "--sql", path(&sql)]);
    let role = ["--password-user", "bare"];
    for (mode, database) in [("isolated", "authentication-roles"), ("shared", "postgres")] {
        let server = server(&[&role[..], &["--mode", mode], &["--auth", "trust"]].concat());
        let stored = "select rolname from pg_authid where rolpassword is not null and rolname in ('bare', 'postgres')";
        let mut client = server.config().dbname(database).connect(NoTls).expect("a session");
        let expected: &[&str] = if mode == "isolated" { &["bare"] } else { &[] };
        assert_eq!(rows(&mut client, stored), expected, "{mode}");
    }
}

#[test]
fn the_password_is_neither_in_the_log_nor_in_the_command_line() {
    let password = file("hunter2\n");
    let log = ["--set", "log_statement=all", "--set", "log_min_duration_statement=0"];
    let server = Server::with(&[&SCRAM[..], &["--password-file", path(&password)], &log].concat());
    connect(&server, "postgres", "hunter2", "postgres").expect("a session");
    let command_line = fs::read(format!("/proc/{}/cmdline", server.program.id())).expect("it runs");
    assert!(!String::from_utf8_lossy(&command_line).contains("hunter2"));
    let lines = server.stop().join("\n");
    assert!(!lines.contains("hunter2") && !lines.contains("SCRAM-SHA-256$"), "{lines}");
}

#[test]
fn rules_are_read_again_at_a_reload_and_wrong_ones_change_nothing() {
    for mode in ["shared", "isolated"] {
        let rules = file("host all all all reject\n");
        let server = server(&["--mode", mode, "--auth", path(&rules)]);
        assert_eq!(refusal(&server, "postgres", "secret", "postgres"), "28000", "{mode}");
        fs::write(rules.path(), "host all all all scram-sha-256\n").expect("a disk");
        server.program.signal(Signal::HUP);
        let started = std::time::Instant::now();
        while connect(&server, "postgres", "secret", "postgres").is_err() {
            assert!(started.elapsed() < PATIENCE, "{mode}: the rules were not read");
        }
        fs::write(rules.path(), "host all all all nonsense\n").expect("a disk");
        server.program.signal(Signal::HUP);
        while !server.program.stderr_line().contains("was not reloaded: the rules before stay in use") {}
        assert_eq!(refusal(&server, "postgres", "wrong", "postgres"), "28P01", "{mode}");
        superuser(&server);
    }
}

#[test]
fn rules_that_cannot_be_used_stop_the_start() {
    let rules = file("host all all all nonsense\n");
    for mode in ["shared", "isolated"] {
        let told = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--mode", mode, "--auth", path(&rules)]);
        assert!(told.contains("invalid authentication method \"nonsense\""), "{mode}: {told}");
    }
    let told = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--auth", "scram-sha-256"]);
    assert!(told.contains("no client could get in: give --password-file"), "{told}");
    let told = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--auth", "/nowhere/rules"]);
    assert!(told.contains("--auth /nowhere/rules cannot be read"), "{told}");
    let told = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--password-file", "/nowhere/password"]);
    assert!(told.contains("--password-file /nowhere/password cannot be read"), "{told}");
}

#[test]
fn sql_cannot_change_the_rules_of_the_program() {
    let server = server(&SCRAM);
    let mut client = superuser(&server);
    let trust = "copy (select 'host all all all trust') to";
    for path in ["/pglite/data/pg_hba.conf", "/pglite/pg_hba.conf"] {
        client.batch_execute(&format!("{trust} '{path}'")).expect("a file of the guest's");
    }
    client.batch_execute("alter system set work_mem = '7MB'").expect("a setting");
    client.batch_execute("select pg_reload_conf()").expect("a signal");
    while rows(&mut superuser(&server), "show work_mem") != ["7MB"] {}
    assert_eq!(refusal(&server, "postgres", "wrong", "postgres"), "28P01");
    assert_eq!(rows(&mut client, "show hba_file"), ["/pglite/pg_hba.conf"]);
    let rules = rows(&mut client, "select type, database, auth_method from pg_hba_file_rules");
    assert_eq!(
        rules,
        [
            "local|{all}|scram-sha-256",
            "host|{all}|scram-sha-256",
            "local|{replication}|scram-sha-256",
            "host|{replication}|scram-sha-256"
        ]
    );
}

#[test]
fn an_address_that_others_reach_needs_rules_or_consent() {
    let told = Program::fail(&["serve", "--listen", "0.0.0.0:0"]);
    assert!(told.contains("every client that can reach 0.0.0.0 could connect as a superuser"), "{told}");
    assert!(told.contains("--auth") && told.contains("--trust-everyone-who-can-connect"), "{told}");
    let told = Program::fail(&["serve", "--listen", "0.0.0.0:0", "--auth", "trust"]);
    assert!(told.contains("--trust-everyone-who-can-connect"), "{told}");
    Program::spawn(&["serve", "--listen", "0.0.0.0:0", "--trust-everyone-who-can-connect"]).first_line();
    if TcpListener::bind("[::]:0").is_ok() {
        Program::fail(&["serve", "--listen", "[::]:0"]);
    }
    superuser(&server(&[&SCRAM[..], &["--listen", "0.0.0.0:0"]].concat()));
}

/// The messages of a connection of `port` up to its `ReadyForQuery`, or to the first question for a password.
fn begin(port: &mut Port, id: u32, options: &Options) -> Vec<Message> {
    port.send_frame(Kind::Open, id, &options.to_bytes());
    port.data(id, &wire::startup(&[("user", "postgres")]));
    let mut bytes = Vec::new();
    loop {
        let frame = port.next();
        if frame.kind == Kind::Data && frame.id == id {
            bytes.extend(frame.payload);
            let mut rest = bytes.clone();
            let messages: Vec<_> = std::iter::from_fn(|| Message::take(&mut rest)).collect();
            let is_asked = messages.first().is_some_and(|first| first.kind == b'R' && first.body != [0; 4]);
            if is_asked || messages.last().is_some_and(|last| matches!(last.kind, b'Z' | b'E')) {
                return messages;
            }
        }
    }
}

#[test]
fn the_parent_answers_for_connections_that_it_trusts_and_for_no_others() {
    for mode in ["shared", "isolated"] {
        let mut port = Port::spawn(&["--mode", mode, "--auth", "scram-sha-256"]);
        assert_eq!(kinds(&begin(&mut port, 1, &Options::new())), "R", "{mode}");
        let peer = Options::new().with("peer_address", "192.0.2.7").with("peer_port", 40_001);
        assert_eq!(kinds(&begin(&mut port, 2, &peer.clone().with("trusted", "false"))), "R", "{mode}");
        let messages = begin(&mut port, 3, &peer.with("trusted", "true"));
        assert_eq!((messages[0].kind, &messages[0].body[..]), (b'R', &[0; 4][..]), "{mode}: AuthenticationOk");
        assert_eq!(messages.last().map(|message| message.kind), Some(b'Z'), "{mode}");
        port.send_frame(Kind::Open, 4, &Options::new().with("trusted", "perhaps").to_bytes());
        while port.next().id != 4 {}
    }
}

#[test]
fn the_parent_says_which_certificate_a_client_can_bind_its_password_to() {
    let authority = Authority::new();
    let certificate = CertificateDer::from_pem_file(authority.path("server.pem")).expect("a certificate");
    let certificate = BASE64_STANDARD.encode(certificate);
    let encrypted = Options::new().with("encrypted", "true");
    for mode in ["shared", "isolated"] {
        let mut port = Port::spawn(&["--mode", mode, "--auth", "scram-sha-256"]);
        let question = |port: &mut Port, id, options: &Options| begin(port, id, options).remove(0).body;
        let shown = encrypted.clone().with("server_certificate", &certificate);
        assert_eq!(question(&mut port, 1, &shown), b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0", "{mode}");
        assert_eq!(question(&mut port, 2, &encrypted), b"\0\0\0\x0aSCRAM-SHA-256\0\0", "{mode}");
        for (id, refused) in [
            (3, Options::new().with("server_certificate", &certificate)),
            (4, encrypted.clone().with("server_certificate", "nonsense!")),
            (5, encrypted.clone().with("server_certificate", BASE64_STANDARD.encode("nonsense"))),
            (6, encrypted.clone().with("server_certificate", &certificate[..certificate.len() / 8 * 4])),
        ] {
            port.send_frame(Kind::Open, id, &refused.to_bytes());
            let [severity, code, message] = port.until_closed(id).1;
            assert_eq!((&severity[..], &code[..]), ("FATAL", "22023"), "{mode} {refused:?}");
            assert!(message.contains("server_certificate"), "{message}");
        }
    }
}

#[test]
fn the_program_makes_its_own_connections_without_a_password() {
    let directory = tempfile::tempdir().expect("a directory");
    let archive = directory.path().join("backup.tar");
    let mut port = Port::spawn(&SCRAM);
    let backup = Options::new().with("path", archive.display());
    port.send_frame(Kind::Request, 7, &[&b"backup\0"[..], &backup.to_bytes()].concat());
    assert_eq!(reply(&port), "ok");
    assert!(archive.exists());
    // A branch, whose snapshot is made with a session of the program's.
    let branch = Options::new().with("name", "b").with("branch", "default");
    port.send_frame(Kind::Request, 8, &[&b"create_cluster\0"[..], &branch.to_bytes()].concat());
    assert_eq!(reply(&port), "ok");
    assert_eq!(kinds(&begin(&mut port, 9, &Options::new().with("cluster", "b"))), "R");
    let trusted = Options::new().with("cluster", "b").with("trusted", "true");
    assert_eq!(begin(&mut port, 10, &trusted).last().map(|message| message.kind), Some(b'Z'));
}

fn reply(port: &Port) -> String {
    loop {
        let frame = port.next();
        if frame.kind == Kind::Reply {
            return frame.reply().0;
        }
    }
}

#[test]
fn a_backup_of_a_server_takes_the_password_in_its_url() {
    let server = server(&SCRAM);
    let directory = tempfile::tempdir().expect("a directory");
    let archive = |name: &str| directory.path().join(name);
    let url = |password: &str| server.url.replace("postgres@", &format!("postgres:{password}@"));
    let run = |url: &str, file: &Path| Program::spawn(&["backup", url, file.to_str().expect("text")]).output();
    assert_eq!(run(&url("secret"), &archive("a.tar")).0, Some(0));
    let (status, _, told) = run(&url("wrong"), &archive("b.tar"));
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("password authentication failed") && !told.contains("wrong"), "{told}");
}

#[test]
fn a_branch_has_the_passwords_of_its_origin() {
    let password = file("secret\n");
    let mut port = Port::spawn(&[&SCRAM[..], &["--password-file", path(&password)]].concat());
    let trusted = Options::new().with("trusted", "true");
    begin(&mut port, 1, &trusted);
    let stored = "select rolpassword from pg_authid where rolname = 'postgres'";
    let ask = |port: &mut Port, id: u32, sql: &str| -> Vec<String> {
        port.data(id, &wire::query(sql));
        let mut bytes = Vec::new();
        loop {
            let frame = port.next();
            if frame.kind == Kind::Data && frame.id == id {
                bytes.extend(frame.payload);
                if bytes.ends_with(b"Z\0\0\0\x05I") {
                    return wire::values(sql, &Message::all(bytes));
                }
            }
        }
    };
    ask(&mut port, 1, "alter role postgres password 'changed'");
    let changed = ask(&mut port, 1, stored);
    let branch = Options::new().with("name", "b").with("branch", "default");
    port.send_frame(Kind::Request, 8, &[&b"create_cluster\0"[..], &branch.to_bytes()].concat());
    assert_eq!(reply(&port), "ok");
    begin(&mut port, 2, &trusted.with("cluster", "b"));
    assert_eq!(ask(&mut port, 2, stored), changed);
}

#[test]
fn rules_and_roles_decide_in_a_branch_as_in_its_origin() {
    let (rules, secret) = (file(RULES), file("secret\n"));
    let mut settings = Settings::default();
    settings.shared.access = Access {
        rules: Some(Arc::new(Rules::open(Authentication::File(rules.path().to_owned())).expect("rules"))),
        password: Some(Password::read(secret.path(), "postgres").expect("a password")),
        ..Access::default()
    };
    let databases = Arc::new(cache::open_at(&cache::shared(), settings));
    let server = Serving::start(databases.clone());
    let config = |cluster: &str, user: &str, password: &str, database: &str| {
        let (mut config, options) = (server.config.clone(), format!("-c pglite.cluster={cluster}"));
        config.user(user).password(password).dbname(database).options(&options).clone()
    };
    let superuser = |cluster| config(cluster, "postgres", "secret", "postgres").connect(NoTls).expect("the password");
    superuser("default").batch_execute(ROLES).expect("roles");
    superuser("default").batch_execute("create database shut").expect("a database");
    let new = |name: &str, origin: &str| NewCluster {
        name: Some(name.to_owned()),
        origin: ClusterOrigin::Branch(origin.to_owned()),
        ..NewCluster::default()
    };
    for (name, origin) in [("branch", "default"), ("twig", "branch")] {
        databases.create_cluster(new(name, origin)).expect("a branch");
    }
    // A role of its own, and a password that the origin does not have.
    let changes = "create role own login password 'own'; alter role app password 'new'";
    superuser("twig").batch_execute(changes).expect("roles");
    let refusal = |cluster: &str, user: &str, password: &str, database: &str| {
        sqlstate(config(cluster, user, password, database).connect(NoTls).map(drop))
    };
    for cluster in ["default", "branch", "twig"] {
        let app = if cluster == "twig" { "new" } else { "app's" };
        for (user, password) in [("postgres", "secret"), ("app", app), ("plain", "plain"), ("old", "old")] {
            let client = config(cluster, user, password, "postgres").connect(NoTls);
            let mut client = client.unwrap_or_else(|error| panic!("{cluster} {user}: {error:?}"));
            assert_eq!(rows(&mut client, "show pglite.cluster"), [cluster]);
            assert_eq!(refusal(cluster, user, "wrong", "postgres"), "28P01", "{cluster} {user}");
        }
        for (user, password, database, code) in [
            ("past", "past", "postgres", "28P01"),
            ("bare", "bare", "postgres", "28P01"),
            ("full", "full", "postgres", "53300"),
            ("nobody", "nobody", "postgres", "28000"),
            ("app", app, "shut", "28000"),
        ] {
            assert_eq!(refusal(cluster, user, password, database), code, "{cluster} {user}");
        }
    }
    for cluster in ["default", "branch"] {
        assert_eq!(refusal(cluster, "own", "own", "postgres"), "28P01", "{cluster}");
    }
    assert_eq!(rows(&mut config("twig", "own", "own", "postgres").connect(NoTls).expect("in"), "select 1"), ["1"]);
    server.stop();
}

#[test]
fn a_reset_asks_for_no_second_password() {
    let password = file("secret\n");
    let arguments = ["--mode", "isolated", "--auth", "scram-sha-256", "--password-file", path(&password)];
    let mut port = Port::spawn(&arguments);
    begin(&mut port, 1, &Options::new().with("trusted", "true"));
    port.send_frame(Kind::Request, 9, &[&b"reset\0"[..], &Options::new().with("connection", 1).to_bytes()].concat());
    assert_eq!(reply(&port), "ok");
    port.data(1, &wire::query("select rolpassword like 'SCRAM%' from pg_authid where rolname = 'postgres'"));
    let answer = port.next();
    let messages = Message::all(answer.payload);
    assert_eq!(wire::values("", &messages), ["t"]);
}

#[test]
fn a_client_that_does_not_answer_the_question_is_not_waited_for_longer_than_authentication_timeout() {
    let rules = file("host all all all scram-sha-256\n");
    for mode in ["shared", "isolated"] {
        let server = server(&["--mode", mode, "--auth", path(&rules), "--set", "authentication_timeout=2"]);
        let mut session: Session = server.unready_session(&[("user", "postgres")]);
        assert_eq!(kinds(&session.until_closed()), "R", "{mode}: the question, and no answer");
        // It was not PostgreSQL's own minute.
        assert_eq!(rows(&mut superuser(&server), "show authentication_timeout"), ["2s"], "{mode}");
    }
}

#[test]
fn a_time_that_cannot_be_read_is_refused_also_where_no_cluster_starts() {
    for value in ["0", "601", "0x5"] {
        let setting = format!("authentication_timeout={value}");
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--mode", "isolated", "--set", &setting];
        let told = Program::fail(&arguments);
        let refusal = format!("authentication_timeout is \"{value}\", which is no time from 1s to 10min");
        assert!(told.contains(&refusal), "{value}: {told}");
    }
}

#[test]
fn a_client_that_does_not_say_who_it_is_is_not_waited_for_longer_than_authentication_timeout() {
    let authority = Authority::new();
    // A packet without its end, and the beginnings of TLS on request and at once. Otherwise each had a minute, which is
    // longer than the test waits.
    let beginnings: [&[u8]; 4] = [b"", b"\0\0\0\x20\0\x03\0\0us", b"\0\0\0\x08\x04\xd2\x16\x2f", b"\x16\x03\x01"];
    for mode in ["shared", "isolated"] {
        let server = authority.serve(&["--mode", mode, "--set", "authentication_timeout=1s"]);
        for beginning in beginnings {
            let mut stream = server.stream();
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
            stream.write_all(beginning).expect("connected");
            let mut answer = Vec::new();
            let end = stream.read_to_end(&mut answer).map_err(|error| error.kind());
            assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "{mode} {beginning:?}: {end:?}");
            // The answer to the request for TLS, and the alert that ends it.
            assert!(matches!(answer.first(), None | Some(b'S' | 0x15)), "{mode} {beginning:?}: {answer:?}");
        }
        server.wait_for_connections(0);
        let mut port = Port::spawn(&["--mode", mode, "--set", "authentication_timeout=1"]);
        port.open(1);
        assert_eq!(port.until_closed(1).1[..2], ["LOG", "57014"], "{mode}");
    }
}

/// A client that is asked for its password and does not answer.
fn asks(server: &Server, parameters: &[(&str, &str)]) -> Session {
    let mut session = server.unready_session(parameters);
    session.next().expect("a question");
    session
}

#[test]
fn subscribers_that_do_not_authenticate_keep_no_others_out() {
    let server = server(&[&SCRAM[..], &["--set", "max_wal_senders=2"]].concat());
    let parameters = [("user", "postgres"), ("replication", "true")];
    // Each that comes waits until one of those before has said nothing for long enough.
    let asked: Vec<Session> = (0..4).map(|_| asks(&server, &parameters)).collect();
    superuser(&server);
    drop(asked);
}

#[test]
fn clients_that_do_not_authenticate_keep_no_others_out() {
    for mode in ["shared", "isolated"] {
        let server = server(&[&SCRAM[..], &["--mode", mode]].concat());
        let crowd: Vec<_> = (0..40).map(|_| server.stream()).collect();
        let asked: Vec<Session> = (0..40).map(|_| asks(&server, &[("user", "postgres")])).collect();
        for _ in 0..20 {
            superuser(&server);
        }
        drop((crowd, asked));
        server.wait_for_connections(0);
    }
}

#[test]
fn clients_that_do_not_authenticate_keep_no_others_out_of_a_cluster_without_further_places() {
    for (mode, user, places) in [("shared", "app", 5), ("isolated", "postgres", 8)] {
        // In mode shared three of eight are for superusers.
        let server = server(&[&SCRAM[..], &["--mode", mode, "--max-connections", "8"]].concat());
        let mut stays = superuser(&server);
        stays.batch_execute("CREATE ROLE app LOGIN PASSWORD 'secret'").expect("a role");
        let asked: Vec<Session> = (0..12).map(|_| asks(&server, &[("user", user)])).collect();
        for _ in 0..20 {
            connect(&server, user, "secret", "postgres").expect("a place of a client that says nothing");
        }
        stays.batch_execute("SELECT 1").expect("a client that has authenticated keeps its place");
        let others: Vec<Client> =
            (1..places).map(|_| connect(&server, user, "secret", "postgres").expect("a session")).collect();
        assert_eq!(refusal(&server, user, "secret", "postgres"), "53300", "{mode}");
        if mode == "shared" {
            // Three places are for superusers, whatever those are that have not said who they are.
            let _silent = (0..3).map(|_| asks(&server, &[("user", user)])).collect::<Vec<_>>();
            superuser(&server);
        }
        drop((asked, others));
        server.wait_for_connections(1);
        connect(&server, user, "secret", "postgres").expect("a session");
    }
}

#[test]
fn clients_of_the_parent_that_do_not_authenticate_make_room_for_others_and_trusted_ones_stay() {
    let mut port = Port::spawn(&SCRAM);
    port.send_frame(Kind::Open, 1, &Options::new().with("trusted", "true").to_bytes());
    assert_eq!(kinds(&begin(&mut port, 2, &Options::new())), "R", "a question that is not answered");
    // As many as there may be at all, and one more.
    (3..=1026).for_each(|id| port.open(id));
    // PostgreSQL says nothing to a client that it has asked (`ProcessInterrupts` in `src/backend/tcop/postgres.c`).
    assert_eq!(port.until_closed(2).0, b"");
    port.open(1027);
    let (mut told, reason) = port.until_closed(3);
    assert_eq!((Message::take(&mut told).expect("an error").kind, &reason[1][..]), (b'E', "53300"));
    port.data(1, &wire::startup(&[("user", "postgres")]));
    let answer = Message::take(&mut port.next().payload).expect("an answer");
    assert_eq!((answer.kind, &answer.body[..]), (b'R', &[0; 4][..]), "AuthenticationOk");
}

#[test]
fn the_file_of_a_unix_socket_has_the_chosen_permissions() {
    let directory = tempfile::tempdir().expect("a directory");
    let listen = format!("unix:{}", directory.path().display());
    for (mode, expected) in [("0600", 0o600), ("770", 0o770)] {
        let mut program = Program::spawn(&["serve", "--listen", &listen, "--socket-mode", mode]);
        program.first_line();
        let metadata = fs::metadata(directory.path().join(".s.PGSQL.5432")).expect("a socket");
        assert_eq!(metadata.permissions().mode() & 0o777, expected);
        program.signal(Signal::TERM);
        program.wait();
    }
    for wrong in ["888", "07777", "rw"] {
        let told = Program::fail(&["serve", "--listen", &listen, "--socket-mode", wrong]);
        assert!(told.contains("octal"), "{told}");
    }
    let told = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--socket-mode", "600"]);
    assert!(told.contains("--socket-mode is for --listen unix:PATH"), "{told}");
}
