//! Where a dump goes: to stdout, or into a file or a directory that appears when it is complete.

use std::{
    env,
    fs::{self, File, Permissions},
    io::{self, IsTerminal, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;

use super::{
    options::Options,
    storage::{DIRECTORY, DUMP, Dump, DumpStorage},
};
use crate::{
    backup::{Target, directory_of, partial_of},
    fs::HostDirectory,
};

/// Where a dump goes.
pub(super) struct Output {
    name: String,
    kind: Kind,
}

enum Kind {
    Stdout,
    /// A file of the host, which can be written from its beginning to its end only if it is not a regular one.
    File(Target),
    Directory(PartialDirectory),
}

impl Output {
    /// Opens what `options` name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn open(options: &Options) -> anyhow::Result<Self> {
        // What pg_dump tells about itself is no dump, and goes to stdout.
        let Some(path) = options.file.as_ref().filter(|_| !options.only_tells) else {
            return Ok(Self { name: "stdout".to_owned(), kind: Kind::Stdout });
        };
        let name = path.display().to_string();
        let kind = if options.is_directory {
            Kind::Directory(PartialDirectory::make(path)?)
        } else {
            Kind::File(Target::open(path)?)
        };
        Ok(Self { name, kind })
    }

    /// Its name, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the dump is shown on a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self.kind, Kind::Stdout) && io::stdout().is_terminal()
    }

    /// The options that make the guest write there.
    pub(super) fn arguments(&self) -> Vec<String> {
        let is_file = match &self.kind {
            Kind::Stdout => false,
            Kind::File(target) => target.is_regular(),
            Kind::Directory(_) => true,
        };
        if is_file { vec![format!("--file={DIRECTORY}/{DUMP}")] } else { Vec::new() }
    }

    /// Where the guest's stdout goes.
    pub(super) fn stream(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match &self.kind {
            Kind::File(target) if !target.is_regular() => Box::new(target.file().try_clone()?),
            _ => Box::new(io::stdout()),
        })
    }

    /// The guest's files.
    pub(super) fn storage(&self, progress: ProgressBar) -> anyhow::Result<DumpStorage> {
        let (dump, temporary) = match &self.kind {
            Kind::Stdout => (Dump::Stream, env::temp_dir()),
            Kind::File(target) if !target.is_regular() => (Dump::Stream, env::temp_dir()),
            Kind::File(target) => {
                // Where there is room for the dump, there is some for parts of it.
                (Dump::File(target.file().try_clone()?), directory_of(Path::new(&self.name)).to_owned())
            }
            Kind::Directory(directory) => {
                (Dump::Directory(HostDirectory::open(&directory.partial)?), directory.partial.clone())
            }
        };
        Ok(DumpStorage::new(dump, temporary, progress))
    }

    /// The dump is complete: gives it its name.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        match self.kind {
            Kind::Stdout => Ok(()),
            Kind::File(target) => {
                if target.is_regular() {
                    let permissions = fs::metadata(&self.name).map_or_else(|_| new_file(), |there| there.permissions());
                    target.file().set_permissions(permissions)?;
                }
                target.finish()
            }
            Kind::Directory(directory) => directory.finish(),
        }
    }
}

/// The permissions of a file that a program makes: what the mask of the process leaves.
fn new_file() -> Permissions {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let mask = mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o077);
    Permissions::from_mode(0o666 & !mask)
}

/// A directory that is being filled under another name.
struct PartialDirectory {
    partial: PathBuf,
    path: PathBuf,
    /// Held locked, so that two dumps do not write into one directory.
    _lock: HostDirectory,
    is_finished: bool,
}

impl PartialDirectory {
    fn make(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        match fs::read_dir(path) {
            Ok(mut entries) => ensure!(entries.next().is_none(), "the directory {name} is not empty"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{name} is no directory that can be used")),
        }
        let partial = partial_of(path).with_context(|| format!("{name} is no name of a directory"))?;
        let cannot_be_made = || format!("{} cannot be made", partial.display());
        let lock = loop {
            match fs::create_dir(&partial) {
                // A dump that was killed has left it, or one that runs writes there.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.with_context(cannot_be_made)?,
            }
            let opened = HostDirectory::open(&partial).with_context(cannot_be_made)?;
            ensure!(opened.try_lock()?, "another dump is being written to {name}");
            // Another dump may have ended in between, and its directory has another name or none.
            if opened.is_at(&partial) {
                break opened;
            }
        };
        for left in fs::read_dir(&partial).with_context(cannot_be_made)? {
            let left = left?;
            let is_directory = left.file_type()?.is_dir();
            let removed = if is_directory { fs::remove_dir_all(left.path()) } else { fs::remove_file(left.path()) };
            removed.with_context(cannot_be_made)?;
        }
        Ok(Self { partial, path: path.to_owned(), _lock: lock, is_finished: false })
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let finish = || {
            File::open(&self.partial)?.sync_all()?;
            fs::rename(&self.partial, &self.path)?;
            File::open(directory_of(&self.path))?.sync_all()
        };
        finish().with_context(|| format!("{} cannot be written", self.path.display()))?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for PartialDirectory {
    fn drop(&mut self) {
        if !self.is_finished {
            // Nothing depends on it.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}
