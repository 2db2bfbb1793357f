//! Locales behave as PostgreSQL's do, or are refused: those of the C library and those of ICU, in both modes.

mod support;

use std::{fs, path::Path};

use pglite_port::{
    engine::artefact::{PGLITE_DATA, PGLITE_JS},
    fs::{At, Files, OpenFlags, Silent, Tree, open_bundle},
};
use postgres::{Client, error::DbError};
use support::{
    program::Program,
    server::{Server, rows, sqlstate},
};
use tempfile::TempDir;

/// Does the same in a cluster of each mode.
fn in_both_modes(test: fn(&mut Client)) {
    for server in [Server::start(), Server::shared()] {
        test(&mut server.connect());
    }
}

fn failure(client: &mut Client, sql: &str) -> DbError {
    let error = client.batch_execute(sql).expect_err(sql);
    error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).clone()
}

#[test]
fn attributes_of_an_icu_collation_change_how_it_compares() {
    in_both_modes(|client| {
        for (locale, comparison) in [
            ("und-u-ks-level2", "'a' = 'A'"),
            ("und-u-ks-level1-kc-true", "'e' = 'é' and 'e' <> 'E'"),
            ("und-u-ka-shifted", "'de-luge' = 'deluge'"),
            ("und-u-kn-true", "'a2' < 'a10'"),
            ("en-US-u-kn", "'a2' < 'a10'"),
            ("und-u-kf-upper", "'A' < 'a'"),
            ("und-u-kb-true", "'coté' > 'côte'"),
            ("und-u-kr-grek", "'β' < 'a'"),
            ("@colNumeric=yes;colCaseFirst=upper", "'a2' < 'a10' and 'A' < 'a'"),
        ] {
            client
                .batch_execute(&format!(
                    "create collation c (provider = icu, locale = '{locale}', deterministic = false)"
                ))
                .expect(locale);
            let compared = comparison.replace("' ", "' collate c ");
            assert_eq!(rows(client, &format!("select {compared}")), ["t"], "{locale}: {comparison}");
            client.batch_execute("drop collation c").expect("dropped");
        }
        client
            .batch_execute(
                "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
                 create table names (name text collate ci unique); insert into names values ('Ada')",
            )
            .expect("a table");
        assert_eq!(sqlstate(client.simple_query("insert into names values ('ADA')")), "23505");
        assert_eq!(rows(client, "select name from names where name = 'aDa'"), ["Ada"]);
        assert_eq!(
            sqlstate(client.simple_query("create collation c (provider = icu, locale = 'en-u-ks-garbage')")),
            "22023"
        );
    });
}

#[test]
fn names_of_attributes_take_their_standard_form() {
    in_both_modes(|client| {
        for (locale, standard) in [
            ("@colStrength=secondary", "und-u-ks-level2"),
            ("@colstrength=quarternary;colnumeric=yes", "und-u-kn-ks-level4"),
            ("en_US@colAlternate=non-ignorable", "en-US-u-ka-noignore"),
            ("@calendar=gregorian", "und-u-ca-gregory"),
            ("und-u-kn-true", "und-u-kn"),
        ] {
            client.batch_execute(&format!("create collation c (provider = icu, locale = '{locale}')")).expect(locale);
            assert_eq!(rows(client, "select colllocale from pg_collation where collname = 'c'"), [standard]);
            client.batch_execute("drop collation c").expect("dropped");
        }
    });
}

#[test]
fn initcap_finds_words_as_icu_does() {
    in_both_modes(|client| {
        for (text, capitalized) in [
            ("hello wORLD", "Hello World"),
            ("it''s o''neil can’t", "It's O'neil Can’t"),
            ("foo_bar a.b.c a:b 3rd 1,5x", "Foo_bar A.b.c A:B 3rd 1,5x"),
            ("me@example.com/ELSEWHERE", "Me@Example.com/Elsewhere"),
            ("ǆabc ﬁne ßtraße ΑΣ ΚΑΛΟΣ", "ǅabc Fine Sstraße Ας Καλος"),
            ("e\u{301}tE\u{301} a\u{ad}B", "E\u{301}te\u{301} A\u{ad}b"),
            ("日本abc 가b คd", "日本Abc 가B คd"),
            ("אב''a אב\"גa a\r\nb", "אב'a אב\"גa A\r\nB"),
            ("", ""),
        ] {
            let sql = format!("select initcap('{text}' collate \"und-x-icu\")");
            assert_eq!(rows(client, &sql), [capitalized]);
        }
    });
}

#[test]
fn locales_that_sort_as_the_root_collation_does_are_there() {
    in_both_modes(|client| {
        let query = "select count(*) from pg_collation where collname in ('und-x-icu', 'en-x-icu', 'en-US-x-icu', 'de-AT-x-icu', 'pt-BR-x-icu')";
        assert_eq!(rows(client, query), ["5"]);
        let query = "select string_agg(w, ' ' order by w collate \"de-DE-x-icu\") from unnest('{Zebra,äpfel,Apfel,apfel}'::text[]) w";
        assert_eq!(rows(client, query), ["apfel Apfel äpfel Zebra"]);
        client
            .batch_execute("set icu_validation_level = error; create collation fr (provider = icu, locale = 'fr-BE')")
            .expect("known");
        let error = failure(client, "create collation c (provider = icu, locale = 'nonsense-nowhere')");
        assert_eq!(
            (error.code().code(), error.message()),
            ("22023", "ICU locale \"nonsense-nowhere\" has unknown language \"nonsense\"")
        );
    });
}

#[test]
fn a_collation_without_its_data_is_refused_with_the_way_to_get_them() {
    in_both_modes(|client| {
        for (locale, collation) in [
            ("sv", "sv"),
            ("da-DK-u-kn-true", "da"),
            ("tr_TR", "tr"),
            ("fr-CA", "fr-CA"),
            ("de-u-co-phonebk", "de-u-co-phonebk"),
            ("zh@collation=stroke", "zh"),
        ] {
            for sql in [
                format!("create collation c (provider = icu, locale = '{locale}')"),
                format!("create database d template template0 locale_provider icu icu_locale '{locale}'"),
            ] {
                let error = failure(client, &sql);
                assert_eq!(error.code().code(), "0A000", "{sql}");
                assert!(error.message().contains(&format!("\"{collation}\"")), "{error}");
                assert!(error.hint().is_some_and(|hint| hint.contains("--icu-data")), "{error:?}");
            }
        }
    });
}

#[test]
fn rules_that_import_a_collation_without_its_data_are_refused() {
    in_both_modes(|client| {
        for (rules, collation) in [
            ("[import sv]", "sv"),
            ("&a < b [ import  de-u-co-phonebk ]", "de-u-co-phonebk"),
            ("[import fr-CA]&a < b", "fr-CA"),
        ] {
            let sql = format!("create collation c (provider = icu, locale = 'und', rules = '{rules}')");
            let error = failure(client, &sql);
            assert_eq!(error.code().code(), "0A000", "{sql}: {error}");
            assert!(error.message().contains(&format!("\"{collation}\"")), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("--icu-data")), "{error:?}");
        }
        for rules in ["[import und]&a < z", "[import en-US]&a < z", "&a < z # [import sv]"] {
            let sql = format!("create collation c (provider = icu, locale = 'und', rules = '{rules}')");
            client.batch_execute(&sql).expect(rules);
            assert_eq!(rows(client, "select 'z' < 'b' collate c"), ["t"], "{rules}");
            client.batch_execute("drop collation c").expect("dropped");
        }
    });
}

#[test]
fn a_locale_that_is_not_ascii_is_one_that_is_not_known() {
    in_both_modes(|client| {
        client.batch_execute("set icu_validation_level = warning").expect("set");
        for locale in ["en-éab", "en_éab@collation=x", "en-aéb", "日本-語語"] {
            // The outcome is ICU's; the cluster goes on.
            for sql in [
                format!("create collation pg_temp.x (provider = icu, locale = '{locale}')"),
                format!("create database d template template0 locale_provider icu icu_locale '{locale}'"),
            ] {
                if let Err(error) = client.batch_execute(&sql) {
                    let code = error.code().map(postgres::error::SqlState::code);
                    assert!(code.is_some_and(|code| code != "XX000"), "{sql}: {error}");
                }
                client.batch_execute("drop collation if exists pg_temp.x").expect(&sql);
                client.batch_execute("drop database if exists d").expect(&sql);
            }
        }
    });
}

#[test]
fn locales_that_the_c_library_does_not_have_are_refused_as_glibc_does() {
    in_both_modes(|client| {
        for (sql, message) in [
            (
                "create collation c (locale = 'en_US.UTF-8')",
                "could not create locale \"en_US.UTF-8\": No such file or directory",
            ),
            (
                "create collation c (lc_collate = 'C', lc_ctype = 'xx')",
                "could not create locale \"xx\": No such file or directory",
            ),
            ("create database d template template0 locale 'de_DE'", "invalid LC_COLLATE locale name: \"de_DE\""),
            (
                "create database d template template0 lc_ctype 'en_US.UTF-8'",
                "invalid LC_CTYPE locale name: \"en_US.UTF-8\"",
            ),
            ("set lc_messages = 'de_DE.UTF-8'", "invalid value for parameter \"lc_messages\": \"de_DE.UTF-8\""),
            ("set lc_monetary = 'de_DE'", "invalid value for parameter \"lc_monetary\": \"de_DE\""),
            (
                "set lc_numeric = 'a_name_longer_than_musl_keeps'",
                "invalid value for parameter \"lc_numeric\": \"a_name_longer_than_musl_keeps\"",
            ),
            ("alter role postgres set lc_time = 'sv_SE'", "invalid value for parameter \"lc_time\": \"sv_SE\""),
        ] {
            let error = failure(client, sql);
            let sqlstate = if sql.contains("database") { "42809" } else { "22023" };
            assert_eq!((error.code().code(), error.message()), (sqlstate, message), "{sql}");
        }
        let libc = "select string_agg(collname, ' ' order by collname collate \"C\") from pg_collation where collprovider = 'c'";
        assert_eq!(rows(client, libc), ["C C.utf8 POSIX"]);
        for name in ["C", "POSIX", "C.UTF-8", "C.utf8", "C.Utf-8", "c.utf8x"] {
            let sql =
                format!("create collation own (locale = '{name}'); set lc_monetary = '{name}'; drop collation own");
            assert_eq!(client.batch_execute(&sql).is_ok(), name != "c.utf8x", "{name}");
        }
    });
}

#[test]
fn a_session_may_ask_for_every_locale_that_there_is_and_no_other() {
    let server = Server::shared();
    let connect = |options: &str| {
        let mut config = server.config();
        config.options(options).connect(postgres::NoTls)
    };
    assert_eq!(rows(&mut connect("-c lc_time=C.utf8").expect("a session"), "show lc_time"), ["C.utf8"]);
    assert_eq!(sqlstate(connect("-c lc_time=de_DE").map(drop)), "22023");
}

#[test]
fn letters_change_their_case_one_to_one() {
    in_both_modes(|client| {
        assert_eq!(
            rows(client, "select upper('straße ⓐ ǆ'), lower('İI Ⓐ ẞ'), initcap('ßa ǆa')"),
            ["STRAßE Ⓐ Ǆ|ii ⓐ ß|ßa Ǆa"]
        );
    });
    // PostgreSQL's own tables are Unicode's simple mappings; the host's may be of a later version of Unicode.
    let differing = "select string_agg(to_hex(i), ' ') from (
            select i, c, upper(c) u, lower(c) l, upper(c collate pg_c_utf8) own_u, lower(c collate pg_c_utf8) own_l
            from (select i, chr(i) c from generate_series(1, 1114111) i where i not between 55296 and 57343) c) s
        where unicode_assigned(c) and
            (u <> own_u collate \"C\" and unicode_assigned(u) or l <> own_l collate \"C\" and unicode_assigned(l))";
    let server = Server::start();
    assert_eq!(rows(&mut server.connect(), differing), ["NULL"]);
}

/// The root collation's file in PGlite's bundle.
fn root_collation() -> Vec<u8> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("pglite/node_modules/@electric-sql/pglite/dist");
    let installed = std::env::var_os("PGLITE_DIR").map_or(installed, Into::into);
    let bundle = open_bundle(&installed.join(PGLITE_DATA.name), &installed.join(PGLITE_JS.name)).expect("a bundle");
    let tree = std::sync::Arc::new(parking_lot::Mutex::new(Tree::from_frozen(bundle)));
    let mut files = Files::new(tree, Box::new(Silent)).expect("files");
    let path = b"/pglite/icu/icudt76l/coll/root.res";
    let descriptor = files.open(At::WorkingDirectory, path, OpenFlags::READ_ONLY, 0).expect("a file");
    let mut content = vec![0; 1 << 20];
    let length = files.read(descriptor, None, &mut content).expect("bytes");
    content.truncate(length);
    content
}

/// A directory of ICU's data with one language: Swedish, which sorts as the root does here.
fn swedish() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let collations = directory.path().join("icudt76l/coll");
    fs::create_dir_all(&collations).expect("a directory");
    fs::write(collations.join("sv.res"), root_collation()).expect("a file");
    directory
}

#[test]
fn data_that_a_user_brings_make_their_languages_usable() {
    let data = swedish();
    let path = data.path().to_str().expect("text");
    for mode in ["isolated", "shared"] {
        let server = Server::with(&["--mode", mode, "--icu-data", path]);
        let mut client = server.connect();
        client.batch_execute("create collation sv (provider = icu, locale = 'sv-SE')").expect("Swedish");
        assert_eq!(rows(&mut client, "select 'a' < 'B' collate sv"), ["t"]);
        assert_eq!(sqlstate(client.batch_execute("create collation da (provider = icu, locale = 'da')")), "0A000");
    }
    // Clusters with and without the data are kept apart in the cache.
    let server = Server::start();
    let mut client = server.connect();
    assert_eq!(sqlstate(client.batch_execute("create collation sv (provider = icu, locale = 'sv')")), "0A000");
}

#[test]
fn data_of_another_version_are_refused_when_the_program_starts() {
    let data = swedish();
    let file = data.path().join("icudt76l/coll/sv.res");
    let content = fs::read(&file).expect("a file");
    let collation = content.windows(4).position(|window| window == b"UCol").expect("a collation");
    let path = data.path().to_str().expect("text");
    for (at, byte, problem) in
        [(collation + 9, 0x78, "of another version"), (8, 1, "big-endian"), (2, 0, "does not have the header")]
    {
        let mut content = content.clone();
        content[at] = byte;
        fs::write(&file, content).expect("a file");
        let (status, _, stderr) = Program::spawn(&["serve", "--listen", "127.0.0.1:0", "--icu-data", path]).output();
        assert_eq!(status, Some(1));
        assert!(stderr.contains("coll/sv.res") && stderr.contains(problem), "{stderr}");
    }
}
