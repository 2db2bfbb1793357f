use std::collections::BTreeMap;

use super::*;
use crate::fuzz::{Corpus, Input, fuzz};

fn origin() -> Origin {
    let text = |text: &str| text.to_owned();
    let (artefact, code, contents, icu) = (text("a"), text("b"), text("c"), text("d"));
    Origin { version: text("1.0.0"), pglite: text("0.5.0"), artefact, code, contents, icu }
}

fn label() -> Label {
    Label { name: "shop".into(), database: "shop db".into(), key: Some("k".into()), program: "p".into() }
}

/// The files of a template, as far as parcels are concerned. The memory has holes.
fn contents() -> Vec<(&'static str, Vec<u8>)> {
    let mut memory = vec![0; 3 * PIECE + 5];
    memory[PIECE + 7] = 1;
    vec![("files/data", b"data".repeat(9)), ("label", b"a label".to_vec()), ("memory", memory), ("state", Vec::new())]
}

fn digests(contents: &[(&str, Vec<u8>)]) -> Digests {
    Digests(contents.iter().map(|(path, bytes)| ((*path).to_owned(), hex(&Sha256::digest(bytes)))).collect())
}

fn put(directory: &Path, contents: &[(&str, Vec<u8>)]) {
    for (path, bytes) in contents {
        fs::create_dir_all(directory.join(path).parent().unwrap()).unwrap();
        fs::write(directory.join(path), bytes).unwrap();
    }
}

fn written(contents: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), contents);
    let mut parcel = Vec::new();
    let length = write(origin(), label(), directory.path(), &digests(contents), &mut parcel).unwrap();
    assert_eq!(length, parcel.len() as u64);
    parcel
}

/// A parcel with this header, whose digest is right, and this content.
fn with_header(header: &[u8], rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(header.len()).unwrap().to_le_bytes();
    [&b"PGLPARC1"[..], &length, &Sha256::digest(header), header, rest].concat()
}

fn unpacked(mut parcel: &[u8]) -> anyhow::Result<(Header, BTreeMap<String, Vec<u8>>)> {
    let directory = tempfile::tempdir()?;
    // What a path out of it would lead to.
    let inner = directory.path().join("template");
    fs::create_dir(&inner)?;
    let opened = Parcel::open(&mut parcel).map_err(anyhow::Error::from);
    let result = opened.and_then(|mut parcel| parcel.unpack(&inner).map(|()| parcel.header.clone()));
    let outside: Vec<_> = fs::read_dir(directory.path())?.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(outside, ["template"]);
    let mut found = BTreeMap::new();
    let mut directories = vec![inner.clone()];
    while let Some(at) = directories.pop() {
        for path in fs::read_dir(at)?.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                directories.push(path);
            } else {
                found.insert(path.strip_prefix(&inner)?.to_str().unwrap().to_owned(), fs::read(&path)?);
            }
        }
    }
    assert!(found.keys().all(|path| is_part(path)));
    Ok((result?, found))
}

fn refusal(parcel: &[u8]) -> String {
    let error = unpacked(parcel).unwrap_err();
    assert!(error.is::<ParcelError>(), "{error:?}");
    error.to_string()
}

#[test]
fn what_is_packed_is_unpacked_as_it_was_with_its_label_and_its_digests() {
    let contents = contents();
    let (header, found) = unpacked(&written(&contents)).unwrap();
    assert_eq!((&header.origin, &header.template), (&origin(), &label()));
    assert_eq!(header.digests(), digests(&contents));
    assert_eq!(found, contents.into_iter().map(|(path, bytes)| (path.to_owned(), bytes)).collect());
}

#[test]
fn files_that_are_no_part_of_a_template_stay_behind() {
    let mut all = contents();
    all.push((".compared", b"this start of the system".to_vec()));
    all.push(("seal", b"digests".to_vec()));
    assert_eq!(unpacked(&written(&all)).unwrap().1.len(), all.len() - 2);
}

#[test]
fn every_changed_byte_and_every_cut_is_noticed() {
    let parcel = written(&[("label", b"a label".to_vec()), ("memory", vec![0; 100]), ("state", b"x".to_vec())]);
    for place in 0..parcel.len() {
        let mut bad = parcel.clone();
        bad[place] ^= 0x10;
        refusal(&bad);
        refusal(&parcel[..place]);
    }
    assert_eq!(
        refusal(&[&parcel[..], b"x"].concat()),
        "the exported template is damaged: something follows it; copy or export it again"
    );
}

#[test]
fn a_damaged_file_does_not_export() {
    let (directory, contents) = (tempfile::tempdir().unwrap(), contents());
    put(directory.path(), &contents);
    fs::write(directory.path().join("label"), b"A label").unwrap();
    let error = write(origin(), label(), directory.path(), &digests(&contents), &mut io::sink()).unwrap_err();
    assert!(error.to_string().ends_with("label is damaged: its digest is wrong"), "{error}");
}

#[test]
fn what_is_no_parcel_and_what_is_one_of_another_version_are_told_apart() {
    assert_eq!(refusal(b""), "this is no exported template");
    assert_eq!(refusal(b"PGLPAR"), "this is no exported template");
    assert_eq!(refusal(&b"\x1f\x8b".repeat(50)), "this is no exported template");
    let other = "this template was exported in the format of another version of the program; export it again with this \
                 one";
    assert_eq!(refusal(&[b"PGLPARC2", &written(&contents())[8..]].concat()), other);
    assert_eq!(refusal(&with_header(br#"{"origin":{}}"#, b"")), other);
    let long = [&b"PGLPARC1"[..], &[0xff; 200]].concat();
    assert!(refusal(&long).contains("the length of its header is wrong"));
}

#[test]
fn a_header_chooses_no_path_but_those_of_a_template() {
    let file = |path: &str| Member { path: path.into(), length: 1, sha256: hex(&Sha256::digest(b"x")) };
    let parcel = |paths: &[&str]| {
        let files = paths.iter().map(|path| file(path)).collect();
        let header = Header { origin: origin(), template: label(), files };
        with_header(&serde_json::to_vec(&header).unwrap(), &b"x".repeat(paths.len()))
    };
    assert!(unpacked(&parcel(&["label", "label.copy", "state"])).is_ok());
    let twice: &[&str] = &["state", "state"];
    for paths in [&["../x"][..], &["/tmp/x"], &["files/../../x"], &["seal"], &["files"], &[".compared"], &[""], twice] {
        assert!(refusal(&parcel(paths)).contains("a template has no such file"), "{paths:?}");
    }
}

#[test]
fn a_length_that_is_a_lie_ends_where_the_parcel_ends() {
    let files = vec![Member { path: "memory".into(), length: u64::MAX, sha256: String::new() }];
    let header = Header { origin: origin(), template: label(), files };
    let parcel = with_header(&serde_json::to_vec(&header).unwrap(), &[0; 10]);
    assert!(refusal(&parcel).contains("it ends early"));
}

#[test]
fn it_is_said_what_does_not_fit() {
    let changed = |change: fn(&mut Origin)| {
        let mut other = origin();
        change(&mut other);
        other.differences(&origin()).join("; ")
    };
    assert_eq!(changed(|_| {}), "");
    assert_eq!(
        changed(|other| (other.pglite, other.artefact) = ("0.4.0".into(), "x".into())),
        "it has PGlite 0.4.0, this program has PGlite 0.5.0"
    );
    // A rewriter that has changed is also a program that has changed.
    assert_eq!(
        changed(|other| (other.version, other.code, other.contents) = ("0.9.0".into(), "x".into(), "x".into())),
        "another rewriter has compiled its PostgreSQL (pglite-port 0.9.0, this one is 1.0.0)"
    );
    let both = changed(|other| (other.contents, other.icu) = ("x".into(), "x".into()));
    assert_eq!(
        both,
        "another version of the program has built it (pglite-port 1.0.0, this one is 1.0.0); \
         it was built with other ICU data (--icu-data)"
    );
}

/// A damaged parcel, as it is and with a right digest of its header: what is unpacked has the digests that it says.
fn check(input: &Input) {
    let start = 8 + 4 + 32;
    let header = input.bytes.get(8..12).and_then(|length| Some(u32::from_le_bytes(length.try_into().ok()?)));
    let end = start + header.map_or(0, |length| length as usize);
    let mended = (start <= end && end <= input.bytes.len()).then(|| {
        let (header, rest) = input.bytes[start..].split_at(end - start);
        with_header(header, rest)
    });
    for parcel in [Some(input.bytes.clone()), mended].into_iter().flatten() {
        if let Ok((header, found)) = unpacked(&parcel) {
            let found: Vec<_> = found.iter().map(|(path, bytes)| (path.as_str(), bytes.clone())).collect();
            assert_eq!(digests(&found), header.digests());
        }
    }
}

#[test]
fn a_damaged_parcel_is_refused_or_what_it_says_it_is() {
    let small = [("label", b"a label".to_vec()), ("memory", vec![7; 40]), ("state", b"state".to_vec())];
    fuzz!(Corpus::made([written(&small)]), check);
}
