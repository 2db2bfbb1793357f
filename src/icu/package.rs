//! ICU data that a user provides: a directory of files, or one `.dat` file that contains them all.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::header::Header;

/// The name under which ICU 76 looks for its data on a little-endian machine with ASCII.
const PACKAGE: &str = "icudt76l";
/// The extensions of ICU's files.
const KINDS: [&str; 8] = ["brk", "cfu", "cnv", "dict", "icu", "nrm", "res", "spp"];
/// Directories of data that PostgreSQL does not use.
const UNUSED: [&str; 6] = ["curr", "rbnf", "region", "translit", "unit", "zone"];

/// The format of collations in a header (`icu4c/source/i18n/collationdatareader.h`), and its version.
const COLLATION: [u8; 8] = *b"UCol\x05\0\0\0";
/// The version of the data, which follows the format's version in ICU 76. Its bits are the version of the format's
/// builder (9) and of Unicode (16.0).
const COLLATION_VERSION: [u8; 2] = [0x09, 0x80];

/// A file of the data: its path below the data's directory, and its bytes.
pub(super) type DataFile = (String, Vec<u8>);

/// Why a file or directory was not accepted as ICU's data.
#[derive(Debug, thiserror::Error)]
pub enum IcuDataError {
    /// It could not be read.
    #[error("the ICU data in {} cannot be read: {error}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
    /// It is not the data of ICU 76 for little-endian machines.
    #[error("{} is not data of ICU 76 for this program: {problem}", path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Reads the data at `path`: a directory `icudt76l`, its parent directory, or a file such as `icudt76l.dat`.
pub(super) fn read(path: &Path) -> Result<Vec<DataFile>, IcuDataError> {
    let failed = |error| IcuDataError::Read { path: path.to_owned(), error };
    let files = if fs::metadata(path).map_err(failed)?.is_dir() {
        let below = path.join(PACKAGE);
        let mut files = Vec::new();
        read_directory(if below.is_dir() { &below } else { path }, "", &mut files)?;
        files
    } else {
        unpack(path, &fs::read(path).map_err(failed)?)?
    };
    let foreign = |problem| IcuDataError::Foreign { path: path.to_owned(), problem };
    for (name, bytes) in &files {
        let header =
            Header::read(bytes).ok_or_else(|| foreign(format!("{name} does not have the header of an ICU file")))?;
        if header.is_big_endian {
            return Err(foreign(format!("{name} is for big-endian machines")));
        }
        if name.starts_with("coll/") && !has_own_version(bytes) {
            return Err(foreign(format!("{name} is of another version of ICU")));
        }
    }
    if files.is_empty() {
        return Err(foreign(format!("it and {PACKAGE}/ below it contain no ICU files")));
    }
    Ok(files)
}

/// Whether all collations in a file have the version of the Unicode Collation Algorithm that the root collation has. A
/// tailoring is valid only for one version of the root collation, which ICU does not check.
fn has_own_version(file: &[u8]) -> bool {
    let mut headers = file.windows(COLLATION.len()).enumerate().filter(|(_, window)| *window == COLLATION);
    headers.all(|(at, _)| file[at + COLLATION.len()..].starts_with(&COLLATION_VERSION))
}

/// Whether PostgreSQL may use the file `name`.
fn is_of_use(name: &str) -> bool {
    let (directory, file) = name.split_once('/').unwrap_or(("", name));
    let kind = file.rsplit_once('.').map_or("", |(_, kind)| kind);
    KINDS.contains(&kind) && !UNUSED.contains(&directory)
}

fn read_directory(directory: &Path, prefix: &str, files: &mut Vec<DataFile>) -> Result<(), IcuDataError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| IcuDataError::Read { path, error }
    };
    let entries = fs::read_dir(directory).map_err(failed(directory))?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>().map_err(failed(directory))?;
    paths.sort();
    for path in paths {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            // ICU has one level of directories.
            if prefix.is_empty() && !UNUSED.contains(&name.as_str()) {
                read_directory(&path, &format!("{name}/"), files)?;
            }
        } else if is_of_use(&name) {
            files.push((name, fs::read(&path).map_err(failed(&path))?));
        }
    }
    Ok(())
}

/// Reads a package: a table of contents with the offsets of names and data, sorted by name (`UDataOffsetTOC` in
/// `icu4c/source/common/ucmndata.h`).
fn unpack(path: &Path, package: &[u8]) -> Result<Vec<DataFile>, IcuDataError> {
    let foreign = |problem: &str| IcuDataError::Foreign { path: path.to_owned(), problem: problem.to_owned() };
    let header = Header::read(package).ok_or_else(|| foreign("it does not have the header of an ICU file"))?;
    if header.format != *b"CmnD" {
        return Err(foreign("it is not a package (.dat)"));
    }
    if header.is_big_endian {
        return Err(foreign("it is for big-endian machines"));
    }
    let truncated = || foreign("it is truncated");
    let contents = package.get(header.length..).ok_or_else(truncated)?;
    let number = |at: usize| -> Option<usize> {
        let bytes = contents.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let count = number(0).ok_or_else(truncated)?;
    let mut files = Vec::new();
    for entry in 0..count {
        let at = 4 + 8 * entry;
        let (name, start) = number(at).zip(number(at + 4)).ok_or_else(truncated)?;
        let end = if entry + 1 < count { number(at + 12) } else { Some(contents.len()) }.ok_or_else(truncated)?;
        let name = contents.get(name..).and_then(|rest| rest.split(|byte| *byte == 0).next()).ok_or_else(truncated)?;
        let name = String::from_utf8_lossy(name);
        let own = name.strip_prefix(PACKAGE).and_then(|name| name.strip_prefix('/'));
        let own = own.ok_or_else(|| foreign(&format!("it contains {name:?}, which is not below {PACKAGE}/")))?;
        if own.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(foreign(&format!("it contains a file with the name {name:?}")));
        }
        if is_of_use(own) {
            files.push((own.to_owned(), contents.get(start..end).ok_or_else(truncated)?.to_vec()));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::{super::header::file_with_header, *};

    /// A package with these files.
    fn package(files: &[(&str, &[u8])]) -> Vec<u8> {
        let number = |length: usize| u32::try_from(length).unwrap().to_le_bytes();
        let names: Vec<u8> = files.iter().flat_map(|(name, _)| name.bytes().chain([0])).collect();
        let start = 4 + 8 * files.len();
        let (mut name, mut content) = (start, start + names.len());
        let mut contents = number(files.len()).to_vec();
        for (file, bytes) in files {
            contents.extend([number(name), number(content)].concat());
            name += file.len() + 1;
            content += bytes.len();
        }
        contents.extend(names);
        contents.extend(files.iter().flat_map(|(_, bytes)| bytes.iter()));
        file_with_header(*b"CmnD", [1, 0, 0, 0], &contents)
    }

    fn read_file(content: &[u8]) -> Result<Vec<DataFile>, IcuDataError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("any name");
        fs::write(&path, content).unwrap();
        read(&path)
    }

    #[test]
    fn a_package_and_a_directory_have_the_same_files() {
        let bundle = file_with_header(*b"ResB", [2, 0, 0, 0], b"one");
        let other = file_with_header(*b"ResB", [2, 0, 0, 0], b"another");
        let files: [(&str, &[u8]); 3] =
            [("icudt76l/coll/sv.res", &bundle), ("icudt76l/curr/sv.res", &bundle), ("icudt76l/sv.res", &other)];
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        fs::write(directory.path().join("icudt76l/LICENSE"), "text").unwrap();
        let expected = vec![("coll/sv.res".to_owned(), bundle.clone()), ("sv.res".to_owned(), other.clone())];
        assert_eq!(read_file(&package(&files)).unwrap(), expected);
        assert_eq!(read(directory.path()).unwrap(), expected);
        assert_eq!(read(&directory.path().join("icudt76l")).unwrap(), expected);
    }

    #[test]
    fn what_is_no_data_of_this_version_is_refused() {
        let bundle = file_with_header(*b"ResB", [2, 0, 0, 0], b"one");
        let whole = package(&[("icudt76l/coll/sv.res", &bundle)]);
        for length in 0..whole.len() - bundle.len() + 24 {
            assert!(matches!(read_file(&whole[..length]), Err(IcuDataError::Foreign { .. })), "{length}");
        }
        for name in ["icudt72l/coll/sv.res", "coll/sv.res", "icudt76l/../sv.res", "icudt76l//sv.res"] {
            let error = read_file(&package(&[(name, &bundle)])).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let older = [&b"UCol\x05\0\0\0\x09\x78"[..], &bundle].concat();
        let older = file_with_header(*b"ResB", [2, 0, 0, 0], &older);
        let error = read_file(&package(&[("icudt76l/coll/sv.res", &older)])).unwrap_err().to_string();
        assert!(error.contains("coll/sv.res is of another version"), "{error}");
        let big_endian = |file: &[u8]| {
            let mut file = file.to_vec();
            file[8] = 1;
            file[..2].reverse();
            file
        };
        let refusal = |file: &[u8]| read_file(file).unwrap_err().to_string();
        assert!(refusal(&big_endian(&whole)).contains("it is for big-endian machines"));
        let inner = package(&[("icudt76l/coll/sv.res", &big_endian(&bundle))]);
        assert!(refusal(&inner).contains("coll/sv.res is for big-endian machines"));
        assert!(
            refusal(&package(&[("icudt76l/sv.res", b"text")]))
                .contains("sv.res does not have the header of an ICU file")
        );
        assert!(refusal(&bundle).contains("not a package"));
        assert!(refusal(&package(&[])).contains("contain no ICU files"));
    }
}
