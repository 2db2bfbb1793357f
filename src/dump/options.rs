//! The options of `pg_dump`. The host has to know where its server is and where the dump goes; the guest gets the rest.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

use crate::dial::{Address, AskForPassword};

/// The options of `pg_dump` 18 that have a value, by their long names, and their short ones if they have one
/// (`src/bin/pg_dump/pg_dump.c`).
const WITH_VALUE: [(&str, Option<char>); 29] = [
    ("compress", Some('Z')),
    ("dbname", Some('d')),
    ("encoding", Some('E')),
    ("exclude-extension", None),
    ("exclude-schema", Some('N')),
    ("exclude-table", Some('T')),
    ("exclude-table-and-children", None),
    ("exclude-table-data", None),
    ("exclude-table-data-and-children", None),
    ("extension", Some('e')),
    ("extra-float-digits", None),
    ("file", Some('f')),
    ("filter", None),
    ("format", Some('F')),
    ("host", Some('h')),
    ("include-foreign-data", None),
    ("jobs", Some('j')),
    ("lock-wait-timeout", None),
    ("port", Some('p')),
    ("restrict-key", None),
    ("role", None),
    ("rows-per-insert", None),
    ("schema", Some('n')),
    ("section", None),
    ("snapshot", None),
    ("superuser", Some('S')),
    ("sync-method", None),
    ("table", Some('t')),
    ("table-and-children", None),
];

/// As [`WITH_VALUE`].
const USERNAME: (&str, Option<char>) = ("username", Some('U'));

/// The name of a filter that is stdin.
const STDIN: &str = "-";

/// The directory of the guest with the files of `--filter`.
const FILTERS: &str = "/filters";

/// What to dump, from where, and whereto.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// A directory with a cluster, which is started for the dump (`--data`); this option is the program's own.
    pub data: Option<PathBuf>,
    /// Where the server is.
    pub address: Address,
    /// Where the dump goes; to stdout if there is none.
    pub file: Option<PathBuf>,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Whether `pg_dump` only tells about itself (`--help`, `--version`).
    pub only_tells: bool,
    /// The files that say what to dump.
    filters: Vec<String>,
    /// What the guest gets of the options.
    arguments: Vec<String>,
}

impl Options {
    /// Reads the options of `pg_dump`, in any order, and a URL or the name of a database.
    ///
    /// # Errors
    /// When a value is missing, or an option cannot work here. Options that `pg_dump` does not know are left to it.
    pub fn read(arguments: &[String]) -> anyhow::Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                arguments.by_ref().cloned().try_for_each(|rest| options.set_database(rest))?;
            } else if let Some(long) = argument.strip_prefix("--") {
                let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
                match known(name) {
                    Some(known) => {
                        let value = value.map(str::to_owned).or_else(|| arguments.next().cloned());
                        let value = value.with_context(|| format!("option --{known} needs a value"))?;
                        options.set(known, value)?;
                    }
                    None => options.set_flag(argument),
                }
            } else if let Some(short) = argument.strip_prefix('-').filter(|short| !short.is_empty()) {
                options.read_short(short, &mut arguments)?;
            } else {
                options.set_database(argument.clone())?;
            }
        }
        ensure!(
            !options.is_directory || options.file.is_some(),
            "a dump in the directory format needs a directory: name it with --file DIRECTORY"
        );
        if options.data.is_some() {
            options.address.check_for_own_cluster()?;
        }
        Ok(options)
    }

    /// Reads letters behind one hyphen, of which the last may have a value.
    fn read_short<'a>(
        &mut self,
        letters: &str,
        arguments: &mut impl Iterator<Item = &'a String>,
    ) -> anyhow::Result<()> {
        for (at, letter) in letters.char_indices() {
            let known = with_value().find(|(_, short)| *short == Some(letter));
            let Some((name, _)) = known else {
                self.set_flag(&format!("-{letter}"));
                continue;
            };
            let rest = &letters[at + letter.len_utf8()..];
            let value = if rest.is_empty() { arguments.next().cloned() } else { Some(rest.to_owned()) };
            return self.set(name, value.with_context(|| format!("option -{letter} needs a value"))?);
        }
        Ok(())
    }

    /// An argument without a hyphen: `pg_dump` takes one, the database.
    fn set_database(&mut self, database: String) -> anyhow::Result<()> {
        // Neither is named: a URL may have a password.
        ensure!(self.address.database.is_none(), "two databases are named, and one dump has one: leave one out");
        self.address.database = Some(database);
        Ok(())
    }

    fn set(&mut self, name: &str, value: String) -> anyhow::Result<()> {
        match name {
            DATA => self.data = Some(value.into()),
            "dbname" => self.set_database(value)?,
            "host" => self.address.host = Some(value),
            "port" => self.address.port = Some(value),
            "username" => self.address.user = Some(value),
            "file" => self.file = Some(value.into()).filter(|path: &PathBuf| !path.as_os_str().is_empty()),
            "filter" => self.filters.push(value),
            "jobs" => ensure!(
                value.trim() == "1",
                "option --jobs={value}: pg_dump runs in one process here; leave the option out"
            ),
            _ => {
                if name == "format" {
                    self.is_directory = ["d", "directory"].contains(&value.to_ascii_lowercase().as_str());
                }
                self.arguments.push(format!("--{name}={value}"));
            }
        }
        Ok(())
    }

    fn set_flag(&mut self, flag: &str) {
        match flag {
            "-w" | "--no-password" => self.address.ask = AskForPassword::Never,
            "-W" | "--password" => self.address.ask = AskForPassword::Always,
            _ => {
                self.only_tells |= ["-?", "--help", "-V", "--version"].contains(&flag);
                self.arguments.push(flag.to_owned());
            }
        }
    }

    /// Checks options of a request, which says in fields of its own what to dump and whereto.
    ///
    /// # Errors
    /// When an option says something of that, or would have the program wait for its user or read something else than
    /// a regular file.
    pub fn check_for_request(&self) -> anyhow::Result<()> {
        ensure!(!self.only_tells, "the options --help and --version make no dump: leave them out");
        ensure!(
            self.data.is_none()
                && Address { ask: AskForPassword::default(), ..self.address.clone() } == Address::default(),
            "the options of pg_dump cannot say which server, database or user a request means: use the request's own \
             options cluster, database and user"
        );
        for filter in &self.filters {
            let is_named_well = Path::new(filter).is_absolute() && !is_of_system(Path::new(filter));
            ensure!(is_named_well, "the filter {filter} is not the absolute path of a file: a request needs that");
            let path = fs::canonicalize(filter).with_context(|| format!("the filter {filter} cannot be read"))?;
            let is_regular = path.is_file() && !is_of_system(&path);
            ensure!(is_regular, "the filter {filter} is not a regular file: a request needs that");
        }
        Ok(())
    }

    /// The arguments for the guest, and the files that they name.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn for_guest(&self) -> anyhow::Result<(Vec<String>, Vec<(String, Vec<u8>)>)> {
        let (mut arguments, mut files) = (self.arguments.clone(), Vec::new());
        for (number, path) in self.filters.iter().enumerate() {
            let content = if path == STDIN {
                let mut content = Vec::new();
                io::stdin().read_to_end(&mut content).map(|_| content)
            } else {
                fs::read(path)
            };
            let name = format!("{FILTERS}/{number}");
            arguments.push(format!("--filter={name}"));
            files.push((name, content.with_context(|| format!("the filter {path} cannot be read"))?));
        }
        Ok((arguments, files))
    }
}

/// Whether the kernel makes what is at `path`: devices and the state of processes.
fn is_of_system(path: &Path) -> bool {
    ["/dev", "/proc", "/sys"].iter().any(|directory| path.starts_with(directory))
}

/// The program's own option.
const DATA: &str = "data";

fn with_value() -> impl Iterator<Item = (&'static str, Option<char>)> {
    WITH_VALUE.into_iter().chain([USERNAME])
}

/// The full name of an option with a value, which may be shortened as far as it is the only one that begins so, as
/// `getopt_long` does.
fn known(name: &str) -> Option<&'static str> {
    let all = || with_value().map(|(name, _)| name).chain([DATA]);
    if let Some(exact) = all().find(|known| *known == name) {
        return Some(exact);
    }
    let mut beginning = all().filter(|known| *known != DATA && name.len() > 2 && known.starts_with(name));
    let first = beginning.next()?;
    beginning.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> anyhow::Result<Options> {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Options::read(&arguments)
    }

    #[test]
    fn the_call_of_ecto_is_understood() {
        let options = read(&[
            "--host",
            "localhost",
            "--dbname",
            "shop",
            "--username",
            "ada",
            "--port",
            "5433",
            "--file",
            "a/structure.sql",
            "--schema-only",
            "--no-acl",
            "--no-owner",
            "-n",
            "public",
        ])
        .unwrap();
        let address = Address {
            database: Some("shop".to_owned()),
            host: Some("localhost".to_owned()),
            port: Some("5433".to_owned()),
            user: Some("ada".to_owned()),
            ask: AskForPassword::IfNeeded,
        };
        assert_eq!(options.address, address);
        assert_eq!(options.file.as_deref().unwrap().to_str(), Some("a/structure.sql"));
        assert_eq!(options.arguments, ["--schema-only", "--no-acl", "--no-owner", "--schema=public"]);
    }

    #[test]
    fn letters_may_be_joined_and_have_their_value_behind_them() {
        let options = read(&["-Ocf", "x", "-Fd", "-wU", "me", "-p5", "postgres://h/d", "-t", "-t"]).unwrap();
        assert_eq!(options.arguments, ["-O", "-c", "--format=d", "--table=-t"]);
        assert!(options.is_directory);
        assert_eq!(options.file.as_deref().unwrap().to_str(), Some("x"));
        let Address { database, port, user, ask, .. } = options.address;
        assert_eq!((user.as_deref(), port.as_deref(), ask), (Some("me"), Some("5"), AskForPassword::Never));
        assert_eq!(database.as_deref(), Some("postgres://h/d"));
    }

    #[test]
    fn the_directory_of_a_cluster_is_an_option_at_any_place_and_no_shortening_of_another() {
        let options = read(&["-Fc", "--data", "dir", "--data-only", "shop"]).unwrap();
        assert_eq!(options.data.as_deref().unwrap().to_str(), Some("dir"));
        assert_eq!(options.arguments, ["--format=c", "--data-only"]);
        assert_eq!(read(&["--data=dir"]).unwrap().data.unwrap().to_str(), Some("dir"));
    }

    #[test]
    fn what_cannot_work_here_or_lacks_a_value_is_named() {
        let message = |arguments: &[&str]| read(arguments).unwrap_err().to_string();
        assert!(message(&["-j", "4"]).contains("--jobs=4"));
        assert!(message(&["-Fd"]).contains("--file DIRECTORY"));
        assert!(read(&["-j1"]).unwrap().arguments.is_empty());
        assert!(message(&["--file"]).contains("--file"));
        assert!(message(&["-f"]).contains("-f"));
        let twice = message(&["postgres://u:secret@h/one", "--dbname", "two"]);
        assert!(twice.contains("two databases") && !twice.contains("secret"), "{twice}");
        for address in [&["postgres://u:secret@h/one"][..], &["-d", "dbname=one"], &["-h", "h"], &["-p", "5"]] {
            let both = message(&[&["--data", "dir"], address].concat());
            assert!(both.contains("--data") && !both.contains("secret"), "{both}");
        }
    }

    #[test]
    fn an_option_may_be_shortened_unless_two_begin_so() {
        assert_eq!(read(&["--form=t"]).unwrap().arguments, ["--format=t"]);
        assert_eq!(read(&["--exclude-table=t"]).unwrap().arguments, ["--exclude-table=t"]);
        assert_eq!(known("exclude-"), None);
        assert_eq!(known("schema-only"), None);
    }

    #[test]
    fn a_filter_is_a_file_of_the_guest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "exclude table t\n").unwrap();
        let (arguments, files) = read(&["--filter", file.path().to_str().unwrap()]).unwrap().for_guest().unwrap();
        assert_eq!(arguments, ["--filter=/filters/0"]);
        assert_eq!(files, [("/filters/0".to_owned(), b"exclude table t\n".to_vec())]);
        let missing = read(&["--filter=/nowhere"]).unwrap().for_guest().unwrap_err();
        assert!(format!("{missing:#}").contains("/nowhere"));
    }
}
