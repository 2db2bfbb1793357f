//! The rooms of `src/` know those below them in the list in `src/lib.rs`, and none above.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Files of Rust below `directory`.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<PathBuf> = entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect();
    found.sort();
    found
}

/// The rooms in the order of the list, each with its line of the list.
fn listed() -> Vec<String> {
    let lib = include_str!("../src/lib.rs");
    let lines = lib.lines().filter_map(|line| line.strip_prefix("//! * "));
    let rooms = lines.flat_map(|line| line.split(": ").next().unwrap_or_default().split(", "));
    rooms.map(|room| room.trim_matches(['[', ']', '`']).to_owned()).collect()
}

/// The room of a file: the first part of its path in `src/`.
fn room_of(path: &Path) -> String {
    let first = path.components().next().expect("a path").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Whether a file is about the tests of its room, which may look at any other.
fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
}

/// The names behind `crate::` in a source, those of groups included, without comments and unit tests.
fn mentioned(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|it| format!("{it}\n")).collect();
    let name = |text: &str| text.chars().take_while(|it| it.is_ascii_alphanumeric() || *it == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(name(rest));
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (place, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if begins && !character.is_whitespace() => {
                    names.push(name(&group[place..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    names
}

#[test]
fn groups_and_paths_are_both_seen() {
    let source = "use crate::{\n    fs::{Errno, Files},\n    guest,\n};\nfn f() { crate::image::g() }\n// crate::no\n";
    assert_eq!(mentioned(source), ["fs", "guest", "image"]);
}

#[test]
fn every_room_is_in_the_list_once() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let binary = ["main", "command_line", "dumps", "lib", "list", "moves", "options", "ready", "start", "stop", "top"];
    let mut rooms: Vec<String> =
        sources(&source).iter().map(|path| room_of(path.strip_prefix(&source).expect("below src"))).collect();
    rooms.retain(|room| !binary.contains(&room.as_str()));
    rooms.dedup();
    rooms.sort();
    rooms.dedup();
    let mut listed = listed();
    listed.sort();
    assert_eq!(listed, rooms);
}

#[test]
fn the_architecture_and_the_library_describe_the_rooms_alike_and_in_one_order() {
    let architecture = include_str!("../ARCHITECTURE.md");
    let table = architecture.split("## The rooms").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a table");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | "));
    let described: Vec<_> =
        rows.filter(|(room, _)| !room.contains('.')).map(|(room, task)| format!("{room}: {task}.")).collect();
    let mut listed: Vec<String> = Vec::new();
    for line in include_str!("../src/lib.rs").lines() {
        if let Some(item) = line.strip_prefix("//! * ") {
            let (room, task) = item.split_once(": ").expect("a room and its task");
            listed.push(format!("{}: {task}", room.trim_matches(['[', ']', '`'])));
        } else if let (Some(more), Some(last)) = (line.strip_prefix("//!   "), listed.last_mut()) {
            *last = format!("{last} {more}");
        }
    }
    assert_eq!(described, listed);
}

#[test]
fn no_room_imports_one_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let listed = listed();
    let place = |room: &str| listed.iter().position(|listed| listed == room);
    let mut up = Vec::new();
    for path in sources(&source) {
        let path = path.strip_prefix(&source).expect("below src");
        let Some(own) = place(&room_of(path)).filter(|_| !is_test(path)) else { continue };
        let text = fs::read_to_string(source.join(path)).expect("text");
        for room in mentioned(&text) {
            if place(&room).is_some_and(|other| other < own) {
                up.push(format!("{}: {} imports {room}", path.display(), listed[own]));
            }
        }
    }
    assert!(up.is_empty(), "arrows that run up:\n{}", up.join("\n"));
}
