//! A cluster that runs, over SQL.

use std::{collections::HashSet, os::unix::net::UnixStream};

use anyhow::{Context, bail, ensure};
use tokio::runtime::{self, Runtime};
use tokio_postgres::{Client, Config, NoTls, Row, Statement, types::ToSql};

use super::{
    BACKUP_LABEL, PG_CONTROL, TABLESPACE_MAP, made,
    origin::{Begun, Content, Ended, Entry, Origin, WalRange, is_below, is_left_out, name_of},
};
use crate::{
    engine::artefact::{MAJOR_VERSION, POSTGRES_VERSION},
    postgres::{control_file, relation_file, wal},
};

/// Directories whose content a server makes again when it starts, or that belongs to it alone (`excludeDirContents` in
/// `src/backend/backup/basebackup.c`); that of `pg_wal` is copied last.
const LEFT_EMPTY: [&str; 7] =
    ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_subtrans", "pg_wal"];
/// The beginning of the names of caches of the catalogs (`RELCACHE_INIT_FILENAME`).
const CATALOG_CACHE: &str = "pg_internal.init";

/// The names below the data directory. Links of tablespaces are not followed.
const LIST: &str = "
with recursive found(path, size, is_directory, modified, target) as (
    select name, stat.size, stat.isdir, stat.modification, null
        from pg_ls_dir('.', true, false) as name, pg_stat_file(name, true) as stat
    union all
    select path || '/' || name, stat.size, stat.isdir, stat.modification,
            case when path = 'pg_tblspc' and name ~ '^[0-9]+$' then pg_tablespace_location(name::oid) end
        from found, pg_ls_dir(path, true, false) as name, pg_stat_file(path || '/' || name, true) as stat
        where is_directory and not coalesce(starts_with(target, '/'), false) and path <> all ($1)
)
select path, size, is_directory, extract(epoch from modified)::bigint, target from found where size is not null";

/// What a role or a database may have set otherwise.
const SETTINGS: &str = "
set role none; set search_path = pg_catalog; set statement_timeout = 0; set lock_timeout = 0;
set transaction_timeout = 0; set idle_session_timeout = 0; set idle_in_transaction_session_timeout = 0;
set default_transaction_isolation = 'read committed'; set default_transaction_read_only = off;
set default_transaction_deferrable = off";

/// A session of a superuser. The backup and the slot that keeps its WAL end with it.
pub(super) struct Server {
    runtime: Runtime,
    client: Client,
    read: Statement,
    segment_size: u32,
    /// Where recovery begins.
    start: u64,
}

impl Server {
    /// Connects to the server at that URL.
    ///
    /// # Errors
    /// When nobody serves there, or the role may not back it up.
    pub(super) fn connect(url: &str) -> anyhow::Result<Self> {
        let mut config: Config = url.parse().context("the URL is not one of PostgreSQL")?;
        config.application_name("pglite-port backup");
        let runtime = new_runtime()?;
        let (client, connection) =
            runtime.block_on(config.connect(NoTls)).context("the server cannot be connected to")?;
        runtime.spawn(connection);
        Self::new(runtime, client)
    }

    /// Connects to the server at the other end of `stream`.
    ///
    /// # Errors
    /// As those of [`Server::connect`].
    pub(super) fn over(stream: UnixStream, database: &str, user: &str) -> anyhow::Result<Self> {
        stream.set_nonblocking(true)?;
        let mut config = Config::new();
        config.dbname(database).user(user).application_name("pglite-port backup");
        let runtime = new_runtime()?;
        let (client, connection) = runtime.block_on(async {
            let stream = tokio::net::UnixStream::from_std(stream)?;
            anyhow::Ok(config.connect_raw(stream, NoTls).await?)
        })?;
        runtime.spawn(connection);
        Self::new(runtime, client)
    }

    fn new(runtime: Runtime, client: Client) -> anyhow::Result<Self> {
        runtime.block_on(client.batch_execute(SETTINGS))?;
        let version: Row = runtime.block_on(client.query_one("show server_version_num", &[]))?;
        let version: i32 = version.try_get::<_, String>(0)?.parse().context("the server's version is no number")?;
        let major = version / 10_000;
        ensure!(
            major.to_string() == MAJOR_VERSION,
            "the server is PostgreSQL {major}, and this program has PostgreSQL {POSTGRES_VERSION}: use its own \
             pg_basebackup"
        );
        let read = "select pg_read_binary_file($1, $2, $3, true)";
        let read = runtime.block_on(client.prepare(read)).context("pg_read_binary_file cannot be used")?;
        Ok(Self { runtime, client, read, segment_size: 0, start: 0 })
    }

    fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> anyhow::Result<Vec<Row>> {
        Ok(self.runtime.block_on(self.client.query(sql, parameters))?)
    }

    /// The one value of a query.
    fn text(&self, sql: &str) -> anyhow::Result<String> {
        Ok(self.runtime.block_on(self.client.query_one(sql, &[]))?.try_get(0)?)
    }

    /// The files of WAL that recovery needs, which are all there, because a slot keeps them.
    fn wal_files(&self, wal: WalRange) -> anyhow::Result<Vec<Entry>> {
        let present = self.query("select pg_ls_dir('pg_wal')", &[])?;
        let present: HashSet<String> = present.iter().map(name).collect::<anyhow::Result<_>>()?;
        let size = u64::from(self.segment_size);
        let file = |path: String, len| Entry { path, content: Content::File(len), modified: super::origin::now() };
        let mut files = Vec::new();
        // The end is the first byte behind the last record.
        for segment in wal.start / size..=(wal.end - 1) / size {
            let name = wal::file_name(wal.timeline, segment * size, self.segment_size);
            ensure!(present.contains(&name), "the server has removed {name} of WAL during the backup: try again");
            files.push(file(format!("pg_wal/{name}"), size));
        }
        let histories = present.iter().filter(|name| name.ends_with(".history"));
        files.extend(histories.map(|name| file(format!("pg_wal/{name}"), 0)));
        Ok(files)
    }
}

impl Origin for Server {
    fn control_file(&mut self) -> anyhow::Result<Vec<u8>> {
        let control = self.read(PG_CONTROL, 0, 1 << 16).context("the role must be a superuser")?;
        control.with_context(|| format!("{PG_CONTROL} is missing"))
    }

    fn begin(&mut self, control: &[u8]) -> anyhow::Result<Begun> {
        self.segment_size = control_file::segment_size(control).context("the size of WAL's segments is unknown")?;
        // Before the backup's own checkpoint, so that no WAL that it needs is removed.
        self.text(
            "select slot_name::text
                from pg_create_physical_replication_slot('pglite_port_backup_' || pg_backend_pid(), true, true)",
        )
        .context("no replication slot can be made, which keeps the WAL of the backup")?;
        let start = self.text("select pg_backup_start('pglite-port backup', true)::text")?;
        self.start = wal::parse_lsn(&start).with_context(|| format!("the backup began at {start:?}"))?;
        let data_directory = self.text("show data_directory")?;
        let rows = self.query(LIST, &[&&LEFT_EMPTY[..]])?;
        let mut entries = Vec::new();
        for row in rows {
            let (path, size, is_directory): (_, i64, bool) = (name(&row)?, row.try_get(1)?, row.try_get(2)?);
            let target: Option<String> = row.try_get(4).context("a tablespace has a path that is not UTF-8")?;
            let content = match target.filter(|target| target.starts_with('/')) {
                Some(target) if is_below(&target, &data_directory) => Content::Symlink(target),
                Some(target) => bail!("the tablespace at {target} is outside of the data directory"),
                None if is_directory => Content::Directory,
                None => Content::File(size.cast_unsigned()),
            };
            entries.push(Entry { path, content, modified: row.try_get::<_, i64>(3)?.try_into().unwrap_or_default() });
        }
        leave_out(&mut entries);
        Ok(Begun { entries, redo: self.start })
    }

    fn read(&mut self, path: &str, offset: u64, len: usize) -> anyhow::Result<Option<Vec<u8>>> {
        let (offset, len) = (i64::try_from(offset)?, i64::try_from(len)?);
        let row = self.runtime.block_on(self.client.query_one(&self.read, &[&path, &offset, &len]))?;
        Ok(row.try_get(0)?)
    }

    fn end(&mut self) -> anyhow::Result<Ended> {
        let row = self.query("select lsn::text, labelfile, spcmapfile from pg_backup_stop(false)", &[])?;
        let row = row.first().context("pg_backup_stop returned nothing")?;
        let (end, label, map): (String, String, Option<String>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let end = wal::parse_lsn(&end).with_context(|| format!("the backup ended at {end:?}"))?;
        let timeline = label.lines().find_map(|line| line.strip_prefix("START TIMELINE: ")?.trim().parse().ok());
        let timeline = timeline.context("the backup's label names no timeline")?;
        let range = WalRange { timeline, start: self.start, end };
        let mut entries = vec![made(BACKUP_LABEL, label.into_bytes())];
        let map = map.filter(|map| !map.is_empty());
        entries.extend(map.map(|map| made(TABLESPACE_MAP, map.into_bytes())));
        entries.extend(self.wal_files(range)?);
        Ok(Ended { entries, wal: Some(range) })
    }
}

/// Leaves out what recovery makes again, such as the content of unlogged tables.
fn leave_out(entries: &mut Vec<Entry>) {
    fn relation(path: &str) -> Option<(String, relation_file::Name<'_>)> {
        let (directory, name) = path.rsplit_once('/')?;
        let name = relation_file::parse(name)?;
        Some((format!("{directory}/{}", name.number), name))
    }
    let unlogged: HashSet<String> = entries
        .iter()
        .filter_map(|entry| relation(&entry.path))
        .filter_map(|(relation, name)| (name.fork == relation_file::INIT).then_some(relation))
        .collect();
    entries.retain(|Entry { path, .. }| {
        let is_unlogged = relation(path)
            .is_some_and(|(relation, name)| name.fork != relation_file::INIT && unlogged.contains(&relation));
        let is_made_again = [BACKUP_LABEL, TABLESPACE_MAP].contains(&path.as_str())
            || name_of(path).starts_with(CATALOG_CACHE)
            || LEFT_EMPTY.iter().any(|directory| is_below(path, directory));
        !is_left_out(path) && !is_unlogged && !is_made_again
    });
}

/// The name of a file, in the first column.
fn name(row: &Row) -> anyhow::Result<String> {
    row.try_get(0).context("a file in the data directory has a name that is not UTF-8: rename or move it")
}

fn new_runtime() -> anyhow::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build().context("no connection can be made")
}
