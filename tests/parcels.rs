//! Templates as files: exported from one cache and imported into another, damaged on the way, and such as do not fit.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    path::Path,
};

use pglite_port::{
    databases::Settings,
    port::frame::{Kind, Options},
    session::Mode,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use support::{
    cache,
    extension::archive,
    port::Port,
    power::{self, Dice},
    program::Program,
    server::{Server, rows},
    wire,
};
use tempfile::TempDir;

/// Bytes of a parcel before its header: magic number, length and digest.
const START: usize = 8 + 4 + 32;
/// Bytes of a record before its content: magic and checksum.
const HEAD: usize = 12;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A cache without templates, and a directory for files.
struct Place {
    cache: TempDir,
    files: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { cache: cache::own(), files: tempfile::tempdir().expect("a directory") }
    }

    fn file(&self, name: &str) -> String {
        text(&self.files.path().join(name)).to_owned()
    }

    fn program(&self, arguments: &[&str]) -> Program {
        Program::spawn(&[&["--cache-dir", text(self.cache.path())], arguments].concat())
    }

    /// The last line that the program writes to stderr, after which it has ended with success.
    fn succeed(&self, arguments: &[&str]) -> String {
        let (status, _, stderr) = self.program(arguments).output();
        assert_eq!(status, Some(0), "{arguments:?}: {stderr}");
        stderr.lines().last().unwrap_or_default().to_owned()
    }

    fn fail(&self, arguments: &[&str]) -> String {
        let (status, _, stderr) = self.program(arguments).output();
        assert_eq!(status, Some(1), "{arguments:?}: {stderr}");
        stderr.lines().last().unwrap_or_default().to_owned()
    }

    fn server(&self) -> Server {
        Server::with(&["--mode", "isolated", "--cache-dir", text(self.cache.path())])
    }

    /// Prepares the template `name` with this SQL, and exports it into the file of that name.
    fn export(&self, name: &str, sql: &str, arguments: &[&str]) -> Vec<u8> {
        let (script, parcel) = (self.file("a.sql"), self.file(name));
        fs::write(&script, sql).expect("a file");
        self.succeed(&[&["prepare", name, "--sql", &script], arguments].concat());
        self.succeed(&[&["export", name, &parcel], arguments].concat());
        fs::read(parcel).expect("a parcel")
    }

    /// Imports this parcel, and says what came of it.
    fn import(&self, parcel: &[u8]) -> Result<String, String> {
        let path = self.file("parcel");
        fs::write(&path, parcel).expect("a file");
        let (status, _, stderr) = self.program(&["import", &path]).output();
        let last = stderr.lines().last().unwrap_or_default().replace(&path, "parcel");
        if status == Some(0) { Ok(last) } else { Err(last) }
    }
}

/// A parcel in its parts.
struct Parts {
    header: Value,
    contents: BTreeMap<String, Vec<u8>>,
}

impl Parts {
    fn of(parcel: &[u8]) -> Self {
        let length = u32::from_le_bytes(parcel[8..12].try_into().expect("four bytes"));
        let (header, mut rest) = parcel[START..].split_at(length as usize);
        let header: Value = serde_json::from_slice(header).expect("a header");
        let mut contents = BTreeMap::new();
        for file in header["files"].as_array().expect("files") {
            let length = usize::try_from(file["length"].as_u64().expect("a length")).expect("it fits");
            contents.insert(file["path"].as_str().expect("a path").to_owned(), rest[..length].to_vec());
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        Self { header, contents }
    }

    /// The parcel, with right digests.
    fn whole(&self) -> Vec<u8> {
        let mut header = self.header.clone();
        let file = |(path, bytes): (&String, &Vec<u8>)| {
            let (length, sha256) = (bytes.len(), hex(&Sha256::digest(bytes)));
            serde_json::json!({ "path": path, "length": length, "sha256": sha256 })
        };
        header["files"] = self.contents.iter().map(file).collect();
        let header = serde_json::to_vec(&header).expect("JSON");
        let length = u32::try_from(header.len()).expect("it is short").to_le_bytes();
        let contents: Vec<u8> = self.contents.values().flatten().copied().collect();
        [b"PGLPARC1", &length[..], &Sha256::digest(&header), &header, &contents].concat()
    }
}

#[test]
fn a_template_is_in_another_cache_what_it_was_in_the_first() {
    let (here, there) = (Place::new(), Place::new());
    let sql = "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n; CREATE UNLOGGED TABLE u AS SELECT 7 AS a;
               CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 42; END'";
    fs::write(here.file("a.sql"), sql).expect("a file");
    here.succeed(&["prepare", "shop", "--sql", &here.file("a.sql"), "--cluster-memory-limit", "100MB"]);
    here.succeed(&["export", "shop", &here.file("shop")]);
    let parcel = fs::read(here.file("shop")).expect("a parcel");
    assert!(there.fail(&["export", "shop", &there.file("shop")]).contains("there is no template \"shop\""));
    assert_eq!(fs::read_dir(there.files.path()).expect("a directory").count(), 0);
    assert!(there.import(&parcel).expect("it fits").ends_with("the template \"shop\" was imported"));
    // A second time is no work.
    assert!(there.import(&parcel).expect("it fits").ends_with("the template \"shop\" was there already"));
    let server = there.server();
    let mut client = server.config().dbname("shop").connect(postgres::NoTls).expect("a session");
    assert_eq!(rows(&mut client, "SELECT count(*), (SELECT a FROM u), f() FROM t"), ["1000|7|42"]);
    // Its limit holds there, too: this needs twice as much.
    let error = client.simple_query("SELECT length(repeat('x', 200000000))").expect_err("it is too much");
    assert_eq!(error.code().map(postgres::error::SqlState::code), Some("53200"));
    // What is exported there is the same, to the byte.
    there.succeed(&["export", "shop", &there.file("again")]);
    assert!(fs::read(there.file("again")).expect("a file") == parcel);
}

#[test]
fn it_goes_through_pipes() {
    let (here, there) = (Place::new(), Place::new());
    here.export("shop", "CREATE TABLE t AS SELECT 1 AS a", &[]);
    let mut export = here.program(&["export", "shop", "-"]);
    let mut parcel = Vec::new();
    export.take_stdout().read_to_end(&mut parcel).expect("a parcel");
    let mut import = there.program(&["import", "-"]);
    import.take_stdin().write_all(&parcel).expect("it reads");
    assert!(import.wait().0.success());
    let server = there.server();
    let mut client = server.config().dbname("shop").connect(postgres::NoTls).expect("a session");
    assert_eq!(rows(&mut client, "SELECT a FROM t"), ["1"]);
}

#[test]
fn what_does_not_fit_is_refused_with_what_differs_and_what_was_there_stays() {
    let place = Place::new();
    let older = place.export("shop", "CREATE TABLE older ()", &[]);
    place.export("shop", "CREATE TABLE newer ()", &[]);
    let refusal = |change: &dyn Fn(&mut Parts)| {
        let mut parts = Parts::of(&older);
        change(&mut parts);
        place.import(&parts.whole()).expect_err("it does not fit")
    };
    let origin = |changes: &[(&str, &str)]| {
        refusal(&|parts| {
            for (key, value) in changes {
                assert!(parts.header["origin"][key].is_string(), "{key}");
                parts.header["origin"][key] = (*value).into();
            }
        })
    };
    let differs = |text: &str, expected: &str| {
        assert!(text.contains("the template \"shop\" does not fit this program: "), "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("Export it again with this version"), "{text}");
    };
    differs(&origin(&[("pglite", "0.1.2"), ("artefact", "0")]), "it has PGlite 0.1.2, this program has PGlite");
    differs(&origin(&[("version", "0.0.9"), ("code", "0")]), "another rewriter");
    differs(&origin(&[("version", "0.0.9"), ("contents", "0")]), "(pglite-port 0.0.9, this one is ");
    differs(&origin(&[("icu", "0")]), "other ICU data");
    let other_format = refusal(&|parts| drop(parts.header.as_object_mut().expect("an object").remove("template")));
    assert!(other_format.contains("in the format of another version"), "{other_format}");
    // Who says that it fits and does not is not believed.
    for (part, key) in [("template", "program"), ("template", "name"), ("template", "database")] {
        let text = refusal(&|parts| parts.header[part][key] = "x".into());
        assert!(text.contains("it contradicts itself"), "{key}: {text}");
    }
    let server = place.server();
    let mut client = server.config().dbname("shop").connect(postgres::NoTls).expect("a session");
    assert_eq!(rows(&mut client, "SELECT to_regclass('newer'), to_regclass('older')"), ["newer|NULL"]);
}

#[test]
fn a_damaged_file_is_refused_and_leaves_nothing() {
    let (here, there) = (Place::new(), Place::new());
    let parcel = here.export("shop", "", &[]);
    let mut places: Vec<usize> = vec![0, 7, 9, 20, START + 50];
    places.extend([parcel.len() / 3, parcel.len() / 2, parcel.len() - 1]);
    for place in places {
        let mut damaged = parcel.clone();
        damaged[place] ^= 4;
        let refusal = there.import(&damaged).expect_err("it is damaged");
        let expected = match place {
            0 => "this is no exported template",
            7 => "in the format of another version",
            _ => "the exported template is damaged: the ",
        };
        assert!(refusal.contains(expected), "{place}: {refusal}");
        assert!(there.import(&parcel[..place]).is_err());
    }
    let templates = fs::read_dir(there.cache.path().join("templates")).expect("a directory");
    let left: Vec<_> = templates.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_extension_that_is_missing_or_another_one_is_named() {
    let bundle = |answer: &str| {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("own.tar.gz");
        let control = b"default_version = '1.0'\n";
        let script = format!("CREATE FUNCTION own() RETURNS int LANGUAGE sql AS 'SELECT {answer}'");
        let files = [
            ("share/postgresql/extension/own.control", &control[..]),
            ("share/postgresql/extension/own--1.0.sql", script.as_bytes()),
        ];
        fs::write(&path, archive(&files)).expect("a file");
        (directory, path)
    };
    let ((_one, one), (_two, two)) = (bundle("1"), bundle("2"));
    let (here, there) = (Place::new(), Place::new());
    here.export("with own", "CREATE EXTENSION own", &["--extension", text(&one)]);
    let parcel = here.file("with own");
    let missing = there.fail(&["import", &parcel]);
    assert!(missing.contains("it needs the extension \"own\", which is not installed"), "{missing}");
    assert!(missing.contains("--extension FILE"), "{missing}");
    let other = there.fail(&["import", &parcel, "--extension", text(&two)]);
    assert!(other.contains("it has another build of the extension \"own\""), "{other}");
    there.succeed(&["import", &parcel, "--extension", text(&one)]);
}

/// `PGLITE_PORT_SEED` repeats the damage, `PGLITE_PORT_TEMPLATES` makes more of it.
#[test]
fn what_is_in_a_parcel_under_right_digests_ends_no_session_but_its_own() {
    let (here, there) = (Place::new(), Place::new());
    let parcel = here.export("hostile", "CREATE TABLE t AS SELECT 1 AS a", &[]);
    let server = there.server();
    let mut other = server.connect();
    let mut dice = Dice(power::seed() | 1);
    let (mut served, mut refused) = (0, 0);
    for number in 0..power::number("PGLITE_PORT_TEMPLATES", 8) {
        let mut parts = Parts::of(&parcel);
        let name = ["state", "files/index", "first-pages", "memory"][usize::try_from(number % 4).expect("it fits")];
        let content = parts.contents.get_mut(name).expect("a file");
        let start = if name == "memory" { 0 } else { HEAD };
        for _ in 0..=dice.below(3) {
            let place = start + usize::try_from(dice.below((content.len() - start) as u64)).expect("it fits");
            content[place] ^= 1 << dice.below(8);
        }
        match name {
            "memory" => {}
            // A stored tree has the length of its content behind the checksum.
            "files/index" => {
                let checksum = crc32fast::hash(&content[20..]);
                content[8..12].copy_from_slice(&checksum.to_le_bytes());
            }
            _ => {
                let checksum = crc32fast::hash(&content[HEAD..]);
                content[8..12].copy_from_slice(&checksum.to_le_bytes());
            }
        }
        match there.import(&parts.whole()) {
            Ok(_) => {
                let mut stream = server.stream();
                stream.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("a timeout");
                let start = wire::startup(&[("user", "postgres"), ("database", "hostile")]);
                stream.write_all(&[start, wire::query("SELECT a FROM t")].concat()).expect("it listens");
                // It may be anything, also nothing.
                let mut answer = [0; 4096];
                served += usize::from(stream.read(&mut answer).is_ok());
            }
            Err(refusal) => {
                assert!(refusal.contains("damaged"), "{name}: {refusal}");
                refused += 1;
            }
        }
        assert_eq!(rows(&mut other, "select 1"), ["1"], "{name}");
    }
    println!("{served} served, {refused} refused");
    // After all that it is still a template like any other.
    there.import(&parcel).expect("it fits");
    let mut client = server.config().dbname("hostile").connect(postgres::NoTls).expect("a session");
    assert_eq!(rows(&mut client, "SELECT a FROM t"), ["1"]);
}

#[test]
fn a_parent_exports_and_imports_by_requests_and_the_next_connection_has_what_was_imported() {
    let place = Place::new();
    let path = place.file("app");
    let mut port = Port::with_sessions(cache::open_at(place.cache.path(), Settings::default()));
    let mut number = 0;
    let mut request = |port: &mut Port, verb: &str, options: &[(&str, &str)]| {
        number += 1;
        let options = options.iter().fold(Options::new(), |options, (key, value)| options.with(key, value));
        port.send_frame(Kind::Request, number, &[verb.as_bytes(), b"\0", &options.to_bytes()].concat());
        loop {
            let frame = port.next();
            if (frame.kind, frame.id) == (Kind::Reply, number) {
                return frame.reply();
            }
        }
    };
    let table = |port: &mut Port, id: u32| {
        port.send_frame(Kind::Open, id, &Options::new().with("mode", Mode::Isolated).to_bytes());
        port.data(id, &wire::startup(&[("user", "postgres"), ("database", "app")]));
        port.data(id, &wire::query("SELECT relname FROM pg_class WHERE relname LIKE '%er' AND relkind = 'r'"));
        let mut bytes = Vec::new();
        loop {
            let frame = port.next();
            if (frame.kind, frame.id) == (Kind::Data, id) {
                bytes.extend(frame.payload);
                if let Some(row) = wire::Message::all(bytes.clone()).iter().find(|message| message.kind == b'D') {
                    return row.values();
                }
            }
        }
    };
    place.export("app", "CREATE TABLE newer ()", &[]);
    let newer = fs::read(&path).expect("a file");
    place.export("app", "CREATE TABLE older ()", &[]);
    assert_eq!(table(&mut port, 1001), ["older"]);
    fs::remove_file(&path).expect("removed");
    let (word, exported) = request(&mut port, "export_template", &[("name", "app"), ("path", &path)]);
    assert_eq!(word, "ok", "{exported:?}");
    let length = fs::metadata(&path).expect("a file").len().to_string();
    assert_eq!(exported.get("bytes"), Some(length.as_str()));
    let (_, templates) = request(&mut port, "templates", &[]);
    assert!(templates.iter().any(|(key, value)| key == "digest" && Some(value) == exported.get("digest")));

    fs::write(&path, &newer).expect("a file");
    let (word, imported) = request(&mut port, "import_template", &[("path", &path)]);
    assert_eq!(word, "ok", "{imported:?}");
    let told = ["name", "database", "new"].map(|key| imported.get(key).unwrap_or_default().to_owned());
    assert_eq!(told, ["app", "app", "true"]);
    assert_eq!(table(&mut port, 1002), ["newer"]);
    let (_, again) = request(&mut port, "import_template", &[("path", &path)]);
    assert_eq!((again.get("new"), again.get("digest")), (Some("false"), imported.get("digest")));

    let mut refused = |verb: &str, options: &[(&str, &str)]| {
        let (word, options) = request(&mut port, verb, options);
        assert_eq!(word, "error");
        options.get("code").unwrap_or_default().to_owned()
    };
    assert_eq!(refused("export_template", &[("name", "nowhere"), ("path", &path)]), "42704");
    assert!(fs::metadata(&path).is_ok(), "the file is as it was");
    assert_eq!(refused("export_template", &[("name", "app"), ("path", "relative")]), "22023");
    assert_eq!(refused("export_template", &[("path", &path)]), "22023");
    assert_eq!(refused("export_template", &[("name", "app"), ("path", &place.file("no/where"))]), "58030");
    assert_eq!(refused("import_template", &[("path", &place.file("nothing"))]), "58P01");
    fs::write(&path, "no template").expect("a file");
    assert_eq!(refused("import_template", &[("path", &path)]), "22023");
    fs::write(&path, b"PGLPARC1".repeat(20)).expect("a file");
    assert_eq!(refused("import_template", &[("path", &path)]), "XX001");
    let mut parts = Parts::of(&newer);
    parts.header["origin"]["icu"] = "0".into();
    fs::write(&path, parts.whole()).expect("a file");
    assert_eq!(refused("import_template", &[("path", &path)]), "55000");
}
