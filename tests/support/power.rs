//! A storage in memory that remembers in which order it was changed, and what a disk could be left with when the power
//! fails at any moment.
//!
//! What was synced is there. Of what was not, each sector of each write may be there or not, and so may changes of a
//! file's length. Names in a directory change in the order of their changes, up to any of those that were not synced;
//! what was synced has its name, as it has with ext4 and XFS, which write the creation of the name in the same
//! transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{self, ErrorKind},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use pglite_port::{
    connection::Connections,
    databases::{DataDirectory, Databases, Paths, Settings, SharedSettings},
    fs::{Storage, StoredEntry, StoredEntryKind, StoredFile, Timestamp},
    log::LogSink,
    session::Mode,
};

use super::cache;

/// What a disk writes whole.
const SECTOR: usize = 512;

/// Numbers that a seed decides (`xorshift64*`).
pub struct Dice(pub u64);

impl Dice {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

/// The number in the environment variable `name`, or `default`.
pub fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// The seed of a test's choices: that in `PGLITE_PORT_SEED`, or another each time. It is printed, so that a failure
/// names it.
pub fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_millis();
    let seed = number("PGLITE_PORT_SEED", u64::try_from(now).expect("a small number"));
    println!("PGLITE_PORT_SEED={seed}");
    seed
}

/// Connections to a cluster in `storage`, with further settings of `PostgreSQL`.
pub fn open(storage: &Memory, further: &[(&str, &str)]) -> anyhow::Result<Arc<Connections>> {
    let further = further.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    open_with(storage, SharedSettings { further, ..SharedSettings::default() })
}

/// As [`open`]; a new cluster is a copy of that template.
pub fn open_copy(storage: &Memory, template: &str) -> anyhow::Result<Arc<Connections>> {
    open_with(storage, SharedSettings { template: Some(template.to_owned()), ..SharedSettings::default() })
}

fn open_with(storage: &Memory, settings: SharedSettings) -> anyhow::Result<Arc<Connections>> {
    Ok(administered(storage, settings)?.1)
}

/// As [`open`], and what administers the program.
pub fn administered(storage: &Memory, settings: SharedSettings) -> anyhow::Result<(Arc<Databases>, Arc<Connections>)> {
    let paths = Paths { cache: Some(cache::shared()), ..Paths::default() };
    let data_directory = Some(DataDirectory::Storage(Arc::new(storage.clone())));
    let shared = SharedSettings { data_directory, ..settings };
    let settings = Settings { shared, ..Settings::default() };
    let databases = Databases::open(&paths, Mode::Shared, settings, LogSink::new(|_, _, _, _| {}))?;
    let databases = Arc::new(databases);
    Ok((databases.clone(), Arc::new(Connections::new(databases))))
}

/// What a name names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Object {
    File(usize),
    Directory,
    Symlink(Vec<u8>),
}

/// A change, in the order in which all of them were made.
#[derive(Clone, Debug)]
enum Change {
    Write {
        file: usize,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    Length {
        file: usize,
        len: u64,
    },
    /// `path` names `object` from now on, or nothing.
    Name {
        path: Vec<u8>,
        object: Option<Object>,
    },
    /// Two names at once.
    Rename {
        from: Vec<u8>,
        to: Vec<u8>,
        object: Object,
    },
    /// What was changed before the sync began is on the disk.
    SyncFile {
        file: usize,
        begun: usize,
    },
    SyncDirectory {
        path: Vec<u8>,
    },
}

/// The kinds of operations of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Open,
    Read,
    List,
    Create,
    Write,
    SetLength,
    Allocate,
    MakeName,
    Unlink,
    Rename,
    SyncFile,
    SyncDirectory,
}

impl Operation {
    pub const ALL: [Self; 12] = [
        Self::Open,
        Self::Read,
        Self::List,
        Self::Create,
        Self::Write,
        Self::SetLength,
        Self::Allocate,
        Self::MakeName,
        Self::Unlink,
        Self::Rename,
        Self::SyncFile,
        Self::SyncDirectory,
    ];
}

/// The files and names at one moment.
#[derive(Clone, Debug, Default)]
struct Disk {
    names: BTreeMap<Vec<u8>, Object>,
    files: Vec<Arc<Vec<u8>>>,
}

impl Disk {
    fn write(&mut self, file: usize, offset: u64, bytes: &[u8]) {
        let (offset, content) = (usize::try_from(offset).expect("it fits"), Arc::make_mut(&mut self.files[file]));
        if content.len() < offset + bytes.len() {
            content.resize(offset + bytes.len(), 0);
        }
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn set_len(&mut self, file: usize, len: u64) {
        Arc::make_mut(&mut self.files[file]).resize(usize::try_from(len).expect("it fits"), 0);
    }

    fn set_name(&mut self, path: &[u8], object: Option<&Object>) {
        match object {
            Some(object) => self.names.insert(path.to_vec(), object.clone()),
            None => self.names.remove(path),
        };
    }

    /// Forgets names in directories that have none themselves.
    fn drop_unreachable(&mut self) {
        let names: BTreeSet<_> = self.names.keys().cloned().collect();
        let is_reachable = |path: &[u8]| {
            let mut at = parent(path);
            while !at.is_empty() {
                if !names.contains(at) {
                    return false;
                }
                at = parent(at);
            }
            true
        };
        self.names.retain(|path, _| is_reachable(path));
    }

    /// Moves what is called `from`, and all that is below it.
    fn rename(&mut self, from: &[u8], to: &[u8], object: &Object) {
        self.names.remove(from);
        self.names.insert(to.to_vec(), object.clone());
        let below = [from, b"/"].concat();
        let moved: Vec<_> = self.names.keys().filter(|path| path.starts_with(&below)).cloned().collect();
        for path in moved {
            if let Some(object) = self.names.remove(&path) {
                self.names.insert([to, &path[from.len()..]].concat(), object);
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    now: Disk,
    /// From here on changes are remembered.
    before: Disk,
    changes: Option<Vec<Change>>,
    syncs: usize,
    /// How often each operation was asked for.
    operations: BTreeMap<Operation, usize>,
    /// The operation of which one fails, how many of these still succeed, and the error.
    failure: Option<(Operation, usize, i32)>,
    /// Whether there is no room for new bytes and names.
    is_full: bool,
    /// That operation on files in this directory waits, and so many do.
    hold: Option<(Operation, &'static [u8])>,
    held: usize,
}

/// A storage in memory; a clone is the same one.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<(Mutex<State>, Condvar)>);

impl Memory {
    fn of(disk: Disk) -> Self {
        Self(Arc::new((Mutex::new(State { now: disk, ..State::default() }), Condvar::new())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().expect("no panic")
    }

    /// Has syncs or reads of the files in `directory` wait until [`Self::release`].
    pub fn hold(&self, operation: Operation, directory: &'static [u8]) {
        assert!([Operation::SyncFile, Operation::Read].contains(&operation));
        self.state().hold = Some((operation, directory));
    }

    /// Waits until an operation is held.
    pub fn wait_until_one_is_held(&self) {
        drop(self.0.1.wait_while(self.state(), |state| state.held == 0).expect("no panic"));
    }

    /// Lets what is held go on.
    pub fn release(&self) {
        self.state().hold = None;
        self.0.1.notify_all();
    }

    /// Remembers changes from now on. What is there now is on the disk.
    pub fn record(&self) {
        let mut state = self.state();
        state.before = state.now.clone();
        state.changes = Some(Vec::new());
    }

    /// How many changes are remembered.
    pub fn moment(&self) -> usize {
        self.state().changes.as_ref().map_or(0, Vec::len)
    }

    /// How many changes are remembered up to that which made the file `path`.
    pub fn moment_of(&self, path: &[u8]) -> usize {
        let makes = |change: &Change| matches!(change, Change::Name { path: made, object: Some(_) } if made == path);
        let state = self.state();
        1 + state.changes.as_ref().and_then(|changes| changes.iter().position(makes)).expect("it was made")
    }

    /// Has the operation of that kind after `number` others fail with that error of the operating system, once.
    pub fn fail(&self, operation: Operation, number: usize, error: i32) {
        self.state().failure = Some((operation, number, error));
    }

    /// How often an operation was asked for.
    pub fn count(&self, operation: Operation) -> usize {
        self.state().operations.get(&operation).copied().unwrap_or_default()
    }

    /// Whether there is no room from now on. Bytes that are there can be changed, as on a file system that writes in
    /// place.
    pub fn set_full(&self, is_full: bool) {
        self.state().is_full = is_full;
    }

    /// Counts an operation, which needs room or not, and has it fail if it is to.
    fn begin(&self, operation: Operation, needs_room: bool) -> io::Result<()> {
        let mut state = self.state();
        *state.operations.entry(operation).or_default() += 1;
        if state.is_full && needs_room {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()));
        }
        match state.failure {
            Some((failing, 0, error)) if failing == operation => {
                state.failure = None;
                Err(io::Error::from_raw_os_error(error))
            }
            Some((failing, left, error)) if failing == operation => {
                state.failure = Some((failing, left - 1, error));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Has no operation fail any more.
    pub fn calm(&self) {
        self.state().failure = None;
    }

    /// Whether the failure is still to come.
    pub fn has_failure(&self) -> bool {
        self.state().failure.is_some()
    }

    /// A storage with what this one has now.
    pub fn copy(&self) -> Self {
        Self::of(self.state().now.clone())
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.state().now.names.values().filter(|object| matches!(object, Object::File(_))).count()
    }

    /// How often something was synced.
    pub fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// A storage as the disk could be if the power failed when there were `moment` changes.
    pub fn after_power_loss(&self, moment: usize, dice: &mut Dice) -> Self {
        let state = self.state();
        let changes = &state.changes.as_ref().expect("they are recorded")[..moment];
        // The number of the first change that the last sync may have missed.
        let mut files = BTreeMap::new();
        let mut directories = BTreeMap::new();
        for (number, change) in changes.iter().enumerate() {
            match change {
                Change::SyncFile { file, begun } => {
                    let synced = files.entry(*file).or_default();
                    *synced = begun.max(synced).to_owned();
                }
                Change::SyncDirectory { path } => drop(directories.insert(path.clone(), number)),
                _ => {}
            }
        }
        // None, all, or each with even chances.
        let luck = dice.below(4);
        let survives = |dice: &mut Dice| match luck {
            0 => false,
            1 => true,
            _ => dice.below(2) == 0,
        };
        let is_synced = |number: usize, file: &usize| files.get(file).is_some_and(|sync| number < *sync);
        let mut disk = state.before.clone();
        disk.files.resize(state.now.files.len(), Arc::default());
        // Directories whose names are no longer followed.
        let mut behind = BTreeSet::new();
        for (number, change) in changes.iter().enumerate() {
            match change {
                Change::Write { file, offset, bytes } if is_synced(number, file) => disk.write(*file, *offset, bytes),
                Change::Write { file, offset, bytes } => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let place = usize::try_from(*offset).expect("it fits") + at;
                        let end = (at + SECTOR - place % SECTOR).min(bytes.len());
                        if survives(dice) {
                            disk.write(*file, place as u64, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
                Change::Length { file, len } if is_synced(number, file) || survives(dice) => disk.set_len(*file, *len),
                Change::Name { path, object } => {
                    let parent = parent(path).to_vec();
                    let synced = directories.get(&parent).is_some_and(|sync| number < *sync);
                    let with_object = match object {
                        Some(Object::File(file)) => is_synced(number, file),
                        Some(Object::Directory) => directories.get(path).is_some_and(|sync| number < *sync),
                        _ => false,
                    };
                    if synced || with_object || (!behind.contains(&parent) && survives(dice)) {
                        disk.set_name(path, object.as_ref());
                    } else {
                        behind.insert(parent);
                    }
                }
                Change::Rename { from, to, object } => {
                    let parents = [parent(from).to_vec(), parent(to).to_vec()];
                    let synced =
                        parents.iter().any(|parent| directories.get(parent).is_some_and(|sync| number < *sync));
                    if synced || (!parents.iter().any(|parent| behind.contains(parent)) && survives(dice)) {
                        disk.rename(from, to, object);
                    } else {
                        behind.extend(parents);
                    }
                }
                Change::Length { .. } | Change::SyncFile { .. } | Change::SyncDirectory { .. } => {}
            }
        }
        disk.drop_unreachable();
        Self::of(disk)
    }

    fn change(&self, change: Change) {
        let mut state = self.state();
        match &change {
            Change::Write { file, offset, bytes } => state.now.write(*file, *offset, bytes),
            Change::Length { file, len } => state.now.set_len(*file, *len),
            Change::Name { path, object } => state.now.set_name(path, object.as_ref()),
            Change::Rename { from, to, object } => state.now.rename(from, to, object),
            Change::SyncFile { .. } | Change::SyncDirectory { .. } => state.syncs += 1,
        }
        if let Some(changes) = &mut state.changes {
            changes.push(change);
        }
    }

    fn object(&self, path: &[u8]) -> io::Result<Object> {
        self.state().now.names.get(path).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn name(&self, path: &[u8], object: Object) -> io::Result<()> {
        if self.object(path).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.change(Change::Name { path: path.to_vec(), object: Some(object) });
        Ok(())
    }

    fn handle(&self, path: &[u8], file: usize) -> Arc<dyn StoredFile> {
        Arc::new(File { memory: self.clone(), path: path.to_vec(), number: file })
    }
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |slash| &path[..slash])
}

impl Storage for Memory {
    fn open(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>> {
        self.begin(Operation::Open, false)?;
        match self.object(path)? {
            Object::File(file) => Ok(self.handle(path, file)),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }

    fn create(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>> {
        self.begin(Operation::Create, true)?;
        let file = {
            let mut state = self.state();
            state.now.files.push(Arc::default());
            state.now.files.len() - 1
        };
        self.name(path, Object::File(file))?;
        Ok(self.handle(path, file))
    }

    fn create_directory(&self, path: &[u8]) -> io::Result<()> {
        self.begin(Operation::MakeName, true)?;
        self.name(path, Object::Directory)
    }

    fn create_symlink(&self, path: &[u8], target: &[u8]) -> io::Result<()> {
        self.begin(Operation::MakeName, true)?;
        self.name(path, Object::Symlink(target.to_vec()))
    }

    fn unlink(&self, path: &[u8]) -> io::Result<()> {
        self.begin(Operation::Unlink, false)?;
        self.object(path)?;
        self.change(Change::Name { path: path.to_vec(), object: None });
        Ok(())
    }

    fn remove_directory(&self, path: &[u8]) -> io::Result<()> {
        self.unlink(path)
    }

    fn rename(&self, from: &[u8], to: &[u8]) -> io::Result<()> {
        self.begin(Operation::Rename, false)?;
        let object = self.object(from)?;
        self.change(Change::Rename { from: from.to_vec(), to: to.to_vec(), object });
        Ok(())
    }

    fn sync_directory(&self, path: &[u8]) -> io::Result<()> {
        self.begin(Operation::SyncDirectory, false)?;
        self.change(Change::SyncDirectory { path: path.to_vec() });
        Ok(())
    }

    fn list(&self, path: &[u8]) -> io::Result<Vec<StoredEntry>> {
        self.begin(Operation::List, false)?;
        let state = self.state();
        let entry = |(name, object): (&Vec<u8>, &Object)| {
            let kind = match object {
                Object::File(file) => StoredEntryKind::File { len: state.now.files[*file].len() as u64 },
                Object::Directory => StoredEntryKind::Directory,
                Object::Symlink(target) => StoredEntryKind::Symlink { target: target.clone() },
            };
            let begins = if path.is_empty() { 0 } else { path.len() + 1 };
            StoredEntry { name: name[begins..].to_vec(), kind, modified: Timestamp::default() }
        };
        Ok(state.now.names.iter().filter(|(name, _)| parent(name) == path).map(entry).collect())
    }
}

#[derive(Debug)]
struct File {
    memory: Memory,
    /// Its name when it was opened.
    path: Vec<u8>,
    number: usize,
}

impl File {
    fn len(&self) -> u64 {
        self.memory.state().now.files[self.number].len() as u64
    }
}

impl File {
    fn wait_while_held(&self, operation: Operation) -> MutexGuard<'_, State> {
        let is_held = |state: &mut State| {
            state.hold.is_some_and(|(held, directory)| held == operation && self.path.starts_with(directory))
        };
        let mut state = self.memory.state();
        if is_held(&mut state) {
            state.held += 1;
            self.memory.0.1.notify_all();
            state = self.memory.0.1.wait_while(state, is_held).expect("no panic");
            state.held -= 1;
        }
        state
    }
}

impl StoredFile for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.memory.begin(Operation::Read, false)?;
        let state = self.wait_while_held(Operation::Read);
        let content = &state.now.files[self.number];
        let rest = content.get(usize::try_from(offset).expect("it fits")..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.memory.begin(Operation::Write, offset + bytes.len() as u64 > self.len())?;
        self.memory.change(Change::Write { file: self.number, offset, bytes: Arc::from(bytes) });
        Ok(bytes.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.begin(Operation::SetLength, len > self.len())?;
        self.memory.change(Change::Length { file: self.number, len });
        Ok(())
    }

    fn allocate(&self, _from: u64, end: u64) -> io::Result<()> {
        let grows = end > self.len();
        self.memory.begin(Operation::Allocate, grows)?;
        if grows {
            self.memory.change(Change::Length { file: self.number, len: end });
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let state = self.wait_while_held(Operation::SyncFile);
        let begun = state.changes.as_ref().map_or(0, Vec::len);
        drop(state);
        // Another process may write the file meanwhile.
        thread::yield_now();
        self.memory.begin(Operation::SyncFile, false)?;
        self.memory.change(Change::SyncFile { file: self.number, begun });
        Ok(())
    }
}
