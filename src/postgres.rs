//! Numbers and offsets that are compiled into the guest, each with its source: files of `PostgreSQL` 18 unless another
//! project is named.
//!
//! Offsets are those of wasm32: `int`, `Oid` and pointers have 4 bytes. Facts that differ between versions of PGlite
//! are not here; the rewriter finds them ([`Facts`](crate::instrument::Facts)). When PGlite moves to another version
//! of `PostgreSQL`, compare this file with its sources. It is long so that this is one file; `page` has a computation, too.

pub(crate) mod page;

/// Processes and their ends.
pub(crate) mod process {
    /// The process id of `postgres` under Emscripten (`getpid` in `system/lib/libc/emscripten_syscall_stubs.c`).
    pub(crate) const FIRST: i32 = 42;
    /// The process id of a checkpointer here. Processes have a fixed one to ask, also before it runs.
    pub(crate) const CHECKPOINTER: i32 = 43;
    /// The process id of a model of sessions, which no session has.
    pub(crate) const MODEL: i32 = 44;
    /// The status with which the guest leaves `main` and stays alive (PGlite, `pglite.ts`: `PGLITE_EXIT_ALIVE`).
    pub(crate) const EXIT_ALIVE: i32 = 99;
    /// The status when an error has reached the main loop (PGlite, `pglite.ts`: `POSTGRES_MAIN_LONGJMP`).
    pub(crate) const EXIT_LONGJMP: i32 = 100;
    /// The status after a fatal error (`errfinish` in `src/backend/utils/error/elog.c`).
    pub(crate) const EXIT_FATAL: i32 = 1;
}

/// `struct Latch` (`src/include/storage/latch.h`).
pub(crate) mod latch {
    /// Offset of `is_set`, an `int`.
    pub(crate) const IS_SET: u64 = 0;
    /// Offset of `maybe_sleeping`, an `int`.
    pub(crate) const MAYBE_SLEEPING: u64 = 4;
    /// Offset of `owner_pid`, an `int`.
    pub(crate) const OWNER: u32 = 12;
}

/// The queue of messages about changed catalogs: `SISeg` (`src/backend/storage/ipc/sinvaladt.c`).
pub(crate) mod messages {
    /// Offset of `maxMsgNum`, an `int`: the number of the next message.
    pub(crate) const NEXT: u32 = 4;
}

/// `struct WaitEventSet` and `WaitEvent` (`src/backend/storage/ipc/waiteventset.c`, `src/include/storage/waiteventset.h`).
pub(crate) mod wait_event_set {
    /// Offset of `nevents`, an `int`.
    pub(crate) const COUNT: u32 = 4;
    /// Offset of `events`, a pointer.
    pub(crate) const EVENTS: u32 = 12;
    /// Bytes of a `WaitEvent`, and the offset of its `events`.
    pub(crate) const EVENT_SIZE: u32 = 16;
    pub(crate) const EVENT_KINDS: u32 = 4;
    /// `WL_SOCKET_READABLE` and `WL_SOCKET_WRITEABLE`
    pub(crate) const READABLE: u32 = 1 << 1;
    pub(crate) const WRITABLE: u32 = 1 << 2;
}

/// The stack.
pub(crate) mod stack {
    /// `STACK_DEPTH_SLOP`: what is left beyond the limit for functions that do not check the depth
    /// (`src/include/miscadmin.h`).
    pub(crate) const DEPTH_SLOP: i32 = 512 << 10;
}

/// The children of a postmaster: the table `child_process_kinds` (`src/backend/postmaster/launch_backend.c`).
pub(crate) mod child {
    /// Bytes of a row: pointer to the name, table slot of the main function, whether it attaches to shared memory.
    pub(crate) const ROW: usize = 12;
    /// Offset of the main function in a row.
    pub(crate) const MAIN: usize = 4;
    /// Offset of `shmem_attach` in a row, a boolean.
    pub(crate) const ON_SHARED_MEMORY: usize = 8;

    /// Name of the first row.
    pub(crate) const INVALID: &str = "invalid";
    /// Names of other rows.
    pub(crate) const STARTUP: &str = "startup";
    pub(crate) const CHECKPOINTER: &str = "checkpointer";
    pub(crate) const BACKGROUND_WRITER: &str = "bgwriter";
    pub(crate) const WAL_WRITER: &str = "wal_writer";
    pub(crate) const AUTOVACUUM_LAUNCHER: &str = "autovacuum launcher";
    pub(crate) const AUTOVACUUM_WORKER: &str = "autovacuum worker";
}

/// Reasons for which a child signals its postmaster: `PMSignalReason` (`src/include/storage/pmsignal.h`).
pub(crate) mod postmaster_signal {
    pub(crate) const START_AUTOVACUUM_LAUNCHER: usize = 4;
    pub(crate) const START_AUTOVACUUM_WORKER: usize = 5;
    pub(crate) const XLOG_IS_SHUT_DOWN: usize = 9;
    /// The number of reasons (`NUM_PMSIGNALS`).
    pub(crate) const COUNT: usize = 10;
}

/// The main segment of shared memory: `PGShmemHeader` (`src/include/storage/pg_shmem.h`).
pub(crate) mod shared_memory {
    /// `PGShmemMagic`, the first word.
    pub(crate) const MAGIC: u32 = 679_834_894;
    /// Offset of `totalsize`, a `Size`.
    pub(crate) const TOTAL_SIZE: usize = 8;
    /// Offset of `freeoffset`, a `Size`.
    pub(crate) const FREE_OFFSET: usize = 12;
}

/// `global/pg_control`: `ControlFileData` (`src/include/catalog/pg_control.h`).
pub(crate) mod control_file {
    /// Offset of `state`, an `enum DBState`, after three numbers of 16 bytes.
    const STATE: usize = 16;
    /// `DB_SHUTDOWNED`
    const SHUT_DOWN: [u8; 4] = 1_u32.to_le_bytes();
    /// Offset of `checkPointCopy.redo`, an `XLogRecPtr`.
    const REDO: usize = 40;
    /// `FLOATFORMAT_VALUE`, by which the part of the file about the layout of data is found.
    const FLOAT_FORMAT: f64 = 1_234_567.0;
    /// Bytes from there to `xlog_seg_size`, behind the number itself, `blcksz`, `relseg_size` and `xlog_blcksz`.
    const SEGMENT_SIZE: usize = 8 + 3 * 4;
    /// Bytes from [`FLOAT_FORMAT`] to `float8ByVal`, a `bool`, which a 64-bit `PostgreSQL` has set: the number itself
    /// and eight words, the last of which is `loblksize`.
    const FLOAT8_BY_VALUE: usize = 8 + 8 * 4;
    /// Bytes from [`FLOAT_FORMAT`] to `data_checksum_version`, behind `float8ByVal` and its padding.
    const CHECKSUM_VERSION: usize = FLOAT8_BY_VALUE + 4;
    /// Bytes from [`FLOAT_FORMAT`] to `mock_authentication_nonce`, behind that and `default_char_signedness`.
    const NONCE: usize = CHECKSUM_VERSION + 4 + 1;
    /// `MOCK_AUTH_NONCE_LEN`
    pub(crate) const NONCE_LENGTH: usize = 32;
    /// `crc` is behind that, where it is found by being right.
    const CHECKSUM: usize = 200;

    /// Whether the cluster is one of a `PostgreSQL` that passes 8-byte values by reference; `None` if the file is not
    /// understood.
    pub(crate) fn is_32_bit(file: &[u8]) -> Option<bool> {
        Some(*file.get(format(file)? + FLOAT8_BY_VALUE)? == 0)
    }

    /// `system_identifier`
    pub(crate) fn identifier(file: &[u8]) -> Option<u64> {
        Some(u64::from_le_bytes(*file.first_chunk()?))
    }

    /// Where the WAL begins that recovery would read after the last checkpoint.
    pub(crate) fn redo(file: &[u8]) -> Option<u64> {
        Some(u64::from_le_bytes(*file.get(REDO..)?.first_chunk()?))
    }

    /// Bytes of a segment of WAL.
    pub(crate) fn segment_size(file: &[u8]) -> Option<u32> {
        word(file, format(file)? + SEGMENT_SIZE).filter(|size| size.is_power_of_two())
    }

    /// Whether the pages of data have checksums.
    pub(crate) fn has_checksums(file: &[u8]) -> Option<bool> {
        Some(word(file, format(file)? + CHECKSUM_VERSION)? != 0)
    }

    fn word(file: &[u8], at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?))
    }

    /// Whether the cluster was shut down, so that it starts without recovery.
    pub(crate) fn was_shut_down(file: &[u8]) -> bool {
        file.get(STATE..STATE + 4) == Some(&SHUT_DOWN)
    }

    /// The offset of `floatFormat`.
    fn format(file: &[u8]) -> Option<usize> {
        let format = FLOAT_FORMAT.to_le_bytes();
        file.windows(format.len()).position(|bytes| bytes == format)
    }

    /// Sets what no two clusters have in common: `system_identifier`, the first 8 bytes, and
    /// `mock_authentication_nonce`. Then it sets the checksum of all that is before it. `None` if the file has no
    /// right checksum behind the nonce.
    pub(crate) fn renew(file: &mut [u8], identifier: u64, nonce: [u8; NONCE_LENGTH]) -> Option<()> {
        let nonce_at = format(file)? + NONCE;
        let checksum = |file: &[u8], at: usize| crc32c::crc32c(&file[..at]).to_le_bytes();
        let is_there = |at: &usize| file.get(*at..*at + 4).is_some_and(|bytes| bytes == checksum(file, *at));
        let at = (CHECKSUM..file.len()).step_by(4).find(is_there)?;
        let room = file.get_mut(nonce_at..nonce_at + NONCE_LENGTH).filter(|room| nonce_at + room.len() <= at)?;
        room.copy_from_slice(&nonce);
        file[..8].copy_from_slice(&identifier.to_le_bytes());
        let new = checksum(file, at);
        file[at..at + 4].copy_from_slice(&new);
        Some(())
    }
}

/// `LIKE` (`src/backend/utils/adt/like.c`).
pub(crate) mod like {
    /// `LIKE_TRUE`
    pub(crate) const TRUE: i32 = 1;
    /// `LIKE_ABORT`: the text has ended before the pattern.
    pub(crate) const ABORT: i32 = -1;
    /// Offset of `deterministic`, a `bool`, in `struct pg_locale_struct` (`src/include/utils/pg_locale.h`).
    pub(crate) const DETERMINISTIC: u32 = 1;
}

/// Names of files of tables and indexes (`GetRelationPath` in `src/common/relpath.c`).
pub(crate) mod relation_file {
    /// Suffixes of the forks; the main fork has none (`forkNames`).
    const FORKS: [&str; 3] = ["_fsm", "_vm", INIT];
    /// Suffix of the fork to which recovery sets an unlogged relation back.
    pub(crate) const INIT: &str = "_init";

    /// The parts of a name.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Name<'a> {
        /// Whether the relation is temporary: `t<process>_` comes before its number.
        pub(crate) is_temporary: bool,
        /// The relation's file number.
        pub(crate) number: &'a str,
        /// The suffix of the fork.
        pub(crate) fork: &'a str,
        /// The number of the file in the fork.
        pub(crate) segment: u32,
    }

    /// Takes a name apart; `None` if it is not one of a relation's file.
    pub(crate) fn parse(name: &str) -> Option<Name<'_>> {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (is_temporary, rest) = match name.strip_prefix('t') {
            None => (false, name),
            Some(rest) => match rest.split_at(digits(rest)) {
                ("", _) => return None,
                (_, rest) => (true, rest.strip_prefix('_')?),
            },
        };
        let (number, rest) = rest.split_at(digits(rest));
        let fork = FORKS.into_iter().find(|fork| rest.starts_with(fork)).unwrap_or_default();
        let (fork, rest) = rest.split_at(fork.len());
        let segment = match rest.strip_prefix('.') {
            None => {
                if rest.is_empty() {
                    0
                } else {
                    return None;
                }
            }
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
            Some(_) => return None,
        };
        (!number.is_empty()).then_some(Name { is_temporary, number, fork, segment })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn files_of_relations_are_told_by_their_names() {
            let name = |is_temporary, number, fork, segment| Some(Name { is_temporary, number, fork, segment });
            for (text, parsed) in [
                ("16385", name(false, "16385", "", 0)),
                ("16385.2", name(false, "16385", "", 2)),
                ("16385_fsm", name(false, "16385", "_fsm", 0)),
                ("16385_init.12", name(false, "16385", "_init", 12)),
                ("t2_16385", name(true, "16385", "", 0)),
                ("t1000_16385_vm.1", name(true, "16385", "_vm", 1)),
            ] {
                assert_eq!(parse(text), parsed, "{text}");
            }
            for text in
                ["", "t_1", "t3_", "t3", "t3_1.", "t3_1x", "1.x", "1.+1", "1_xyz", "toast", "PG_VERSION", "t3-1"]
            {
                assert_eq!(parse(text), None, "{text}");
            }
        }
    }
}

/// Files of WAL: `XLogLongPageHeaderData` (`src/include/access/xlog_internal.h`), with which each begins.
pub(crate) mod wal {
    /// The directory of the segments, below the data directory.
    pub(crate) const DIRECTORY: &[u8] = b"pg_wal";
    /// Bytes of a segment's name: timeline and number, in hexadecimal digits.
    pub(crate) const NAME_LENGTH: usize = 24;
    /// Offset of `xlp_sysid`.
    pub(crate) const IDENTIFIER: u64 = 24;
    /// Offset of `xlp_info`, a `uint16`.
    const INFO: usize = 2;
    /// `XLP_LONG_HEADER`
    const LONG_HEADER: u8 = 0x02;

    /// The name of the segment that the WAL at `lsn` is in (`XLogFileName` in `src/include/access/xlog_internal.h`).
    pub(crate) fn file_name(timeline: u32, lsn: u64, segment_size: u32) -> String {
        let segment = lsn / u64::from(segment_size);
        let segments_in_4_gib = (1 << 32) / u64::from(segment_size);
        format!("{timeline:08X}{:08X}{:08X}", segment / segments_in_4_gib, segment % segments_in_4_gib)
    }

    /// Reads an LSN in PostgreSQL's form, such as `1/8F000028`.
    pub(crate) fn parse_lsn(text: &str) -> Option<u64> {
        let (high, low) = text.split_once('/')?;
        Some(u64::from(u32::from_str_radix(high, 16).ok()?) << 32 | u64::from(u32::from_str_radix(low, 16).ok()?))
    }

    /// Writes an LSN in that form.
    pub(crate) fn format_lsn(lsn: u64) -> String {
        format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
    }

    /// Whether a segment has a header with a system identifier in it.
    pub(crate) fn has_identifier(segment: &[u8]) -> bool {
        segment.get(INFO).is_some_and(|info| info & LONG_HEADER != 0)
    }
}

/// Checkpoints.
pub(crate) mod checkpoint {
    /// Flags (`src/include/access/xlog.h`): no delays between writes.
    pub(crate) const IMMEDIATE: u32 = 0x0004;
    /// Also when no WAL was written since the last one.
    pub(crate) const FORCE: u32 = 0x0008;
    /// The requesting process waits until it is done.
    pub(crate) const WAIT: u32 = 0x0020;
    /// A process has requested it.
    pub(crate) const REQUESTED: u32 = 0x0040;
    /// Requested because the amount of WAL has reached `max_wal_size`.
    pub(crate) const CAUSE_XLOG: u32 = 0x0080;

    /// Offsets in `CheckpointerShmemStruct` (`src/backend/postmaster/checkpointer.c`): `checkpointer_pid`, an `int`,
    /// which a lock follows.
    pub(crate) const PROCESS_ID: u32 = 0;
    /// `ckpt_started`, an `int`.
    pub(crate) const STARTED: u32 = 8;
    /// `ckpt_done`, an `int`.
    pub(crate) const DONE: u32 = 12;
    /// `ckpt_failed`, an `int`.
    pub(crate) const FAILED: u32 = 16;
    /// `ckpt_flags`, an `int`.
    pub(crate) const FLAGS: u32 = 20;
    /// `start_cv`, a `ConditionVariable` of 12 bytes.
    pub(crate) const START_CONDITION: u32 = 24;
    /// `done_cv`, likewise.
    pub(crate) const DONE_CONDITION: u32 = 36;
    /// `num_requests`. The rewriter finds its offset as well, which confirms the offsets above.
    pub(crate) const REQUESTS: u32 = 48;
    /// `max_requests`
    pub(crate) const MOST_REQUESTS: u32 = 52;
}

/// The wait events of a session in `pg_stat_activity`, by their number in their class
/// (`src/backend/utils/activity/wait_event_names.txt`, `src/include/utils/wait_classes.h`).
pub(crate) mod wait_event {
    /// `PG_WAIT_IPC`
    const IPC: u32 = 0x0800_0000;
    /// `WAIT_EVENT_CHECKPOINT_DONE`, the twelfth of its class.
    pub(crate) const CHECKPOINT_DONE: u32 = IPC + 11;
    /// `WAIT_EVENT_CHECKPOINT_START`, the thirteenth.
    pub(crate) const CHECKPOINT_START: u32 = IPC + 12;
}

/// Settings: enumerations of `src/include/utils/guc.h`.
pub(crate) mod setting {
    /// Values of `GucContext`, where a setting may be changed: `PGC_POSTMASTER`.
    pub(crate) const AT_START: i32 = 1;
    /// `PGC_SIGHUP`
    pub(crate) const ON_RELOAD: i32 = 2;
    /// Values of `GucSource`, where a setting comes from: `PGC_S_ARGV`
    pub(crate) const COMMAND_LINE: i32 = 4;
    /// `PGC_S_GLOBAL`, for all databases and roles.
    pub(crate) const GLOBAL: i32 = 5;
    /// `PGC_S_DATABASE`
    pub(crate) const DATABASE: i32 = 6;
    /// `PGC_S_USER`
    pub(crate) const USER: i32 = 7;
    /// `PGC_S_DATABASE_USER`
    pub(crate) const DATABASE_USER: i32 = 8;
    /// `PGC_S_OVERRIDE`
    pub(crate) const OVERRIDE: i32 = 10;
}

/// Catalogs, names and privileges.
pub(crate) mod catalog {
    /// The number of bytes in a name that `PostgreSQL` uses: `NAMEDATALEN` - 1 (`src/include/pg_config_manual.h`).
    pub(crate) const NAME_LENGTH: usize = 63;
    /// `DatabaseRelationId` (`src/include/catalog/pg_database.h`).
    pub(crate) const DATABASE: u32 = 1262;
    /// `DbRoleSettingRelationId` (`src/include/catalog/pg_db_role_setting.h`).
    pub(crate) const DB_ROLE_SETTING: u32 = 2964;
    /// `AccessShareLock` (`src/include/storage/lockdefs.h`).
    pub(crate) const ACCESS_SHARE_LOCK: i32 = 1;
    /// `ACL_CONNECT` (`src/include/nodes/parsenodes.h`).
    pub(crate) const ACL_CONNECT: u64 = 1 << 11;
    /// `ACLCHECK_OK` (`src/include/utils/acl.h`).
    pub(crate) const ACLCHECK_OK: i32 = 0;
}

/// The destination of a backend's output: `CommandDest` (`src/include/tcop/dest.h`).
pub(crate) mod destination {
    pub(crate) const NONE: u32 = 0;
    pub(crate) const REMOTE: u32 = 2;
}

/// Levels of messages (`src/include/utils/elog.h`).
pub(crate) mod level {
    /// Ends the transaction.
    pub(crate) const ERROR: i32 = 21;
    /// Ends the session.
    pub(crate) const FATAL: i32 = 22;
}

/// `struct Port` (`src/include/libpq/libpq-be.h`): a backend's data about its client's connection.
pub(crate) mod port_struct {
    /// Offset of `laddr`. `pq_init` (`src/backend/libpq/pqcomm.c`) stores 128 in its `salen`, at 140.
    pub(crate) const LOCAL_ADDRESS: u32 = 12;
    /// Offset of `raddr`, to which `pq_init` copies the address that it is given; its `salen` is at 272.
    pub(crate) const REMOTE_ADDRESS: u32 = 144;
    /// Offset of `remote_host`, which is loaded for `%h` in a prefix of log lines (`log_status_format` in
    /// `src/backend/utils/error/elog.c`).
    pub(crate) const REMOTE_HOST: u32 = 276;
    /// Offset of `remote_port`, which is loaded after it for `%r`.
    pub(crate) const REMOTE_PORT: u32 = 292;
    /// Offset of `user_name`, the first argument of `get_role_oid` in `check_hba`.
    pub(crate) const USER_NAME: u32 = 364;
    /// Offset of `hba`, where `check_hba` stores the rule that it has found.
    pub(crate) const RULE: u32 = 380;
    /// Offset of `rawline` in that rule (`struct HbaLine` in `src/include/libpq/hba.h`).
    pub(crate) const RULE_TEXT: u32 = 8;
    /// Offset of `ssl_in_use`, a byte, which `check_hba` (`src/backend/libpq/hba.c`) compares with the kind of a rule.
    pub(crate) const SSL_IN_USE: u32 = 488;
    /// Bytes up to what only encryption in the guest uses, which this build has not.
    pub(crate) const USED: u32 = 492;
    /// Bytes of `struct sockaddr_storage`, which `salen` follows in a `SockAddr` (`src/include/libpq/pqcomm.h`).
    pub(crate) const STORAGE: usize = 128;
}

/// The state of a SCRAM exchange (`scram_state` in `src/backend/libpq/auth-scram.c`), whose functions store and load what
/// is at these offsets.
pub(crate) mod scram_state {
    /// Offset of `state`.
    pub(crate) const STATE: u32 = 0;
    /// `SCRAM_AUTH_INIT`: no message has come yet.
    pub(crate) const INIT: u32 = 0;
    /// Offset of `channel_binding_in_use`, a byte.
    pub(crate) const CHANNEL_BINDING_IN_USE: u32 = 12;
    /// Offset of `cbind_flag`, a byte.
    pub(crate) const BINDING_FLAG: u32 = 128;
}

/// Times.
pub(crate) mod timestamp {
    /// Microseconds between the epochs of Unix and of `PostgreSQL`, 2000-01-01 (`src/include/datatype/timestamp.h`).
    pub(crate) const EPOCH: i64 = 946_684_800_000_000;
    /// Bytes from `MyStartTime` to `MyStartTimestamp`, which follows it (`src/backend/utils/init/globals.c`).
    pub(crate) const START_TIMESTAMP: u32 = 8;
}

/// Character encodings (`src/include/mb/pg_wchar.h`).
pub(crate) mod encoding {
    /// Values of `enum pg_enc`.
    pub(crate) const UTF8: i32 = 6;
    /// The "Mule internal code".
    pub(crate) const MULE_INTERNAL: i32 = 7;

    /// An entry of `pg_enc2name_tbl`: its bytes, and offsets in it.
    pub(crate) mod name {
        pub(crate) const SIZE: u32 = 8;
        pub(crate) const TEXT: u32 = 0;
        pub(crate) const ENCODING: u32 = 4;
    }

    /// An entry of `pg_wchar_table`: its bytes, and offsets in it.
    pub(crate) mod functions {
        pub(crate) const SIZE: u32 = 28;
        pub(crate) const LENGTH: u32 = 8;
        pub(crate) const VERIFY: u32 = 16;
        pub(crate) const LONGEST: u32 = 24;
    }

    /// `pg_mb_radix_tree`: offsets in it.
    pub(crate) mod radix_tree {
        pub(crate) const CHARS16: u32 = 0;
        pub(crate) const CHARS32: u32 = 4;
        /// The roots for characters of one, two, three and four bytes.
        pub(crate) const ROOTS: [u32; 4] = [8, 16, 24, 36];
        /// From a root to its bounds, two for each byte of a character.
        pub(crate) const BOUNDS: u32 = 4;
    }

    /// Bytes of an entry of `pg_utf_to_local_combined` or `pg_local_to_utf_combined`, of three words.
    pub(crate) const COMBINED: u32 = 12;
}

/// What a process has written of WAL: `WalUsage` (`src/include/executor/instrument.h`).
pub(crate) mod wal_usage {
    /// Offset of `wal_bytes`, a `uint64`, behind `wal_records` and `wal_fpi`.
    pub(crate) const BYTES: u32 = 16;
}

/// Statistics of databases that a process has not added to shared memory yet: `PgStat_EntryRef`, `PgStatShared_Common`
/// (`src/include/utils/pgstat_internal.h`), `PgStat_StatDBEntry` (`src/include/pgstat.h`) and `LWLock`
/// (`src/include/storage/lwlock.h`).
pub(crate) mod database_statistics {
    /// Offsets of the pointers `shared_stats` and `pending` in a `PgStat_EntryRef`.
    pub(crate) const SHARED: u32 = 4;
    pub(crate) const PENDING: u32 = 12;
    /// Offset of the `PgStat_StatDBEntry` in a `PgStatShared_Database`.
    pub(crate) const STATISTICS: u32 = 24;
    /// Offset of the state of the lock in a `PgStatShared_Common`.
    pub(crate) const LOCK_STATE: u32 = 8;
    /// The bits of the state that are set while a process has the lock (`LW_LOCK_MASK`).
    pub(crate) const LOCKED: u32 = (1 << 19) - 1;

    /// Offsets in a `PgStat_StatDBEntry` of the counters that processes add up, each an `int64`. Times and failures of
    /// checksums are between them.
    pub(crate) const COUNTERS: [u64; 29] = [
        0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 88, 96, 104, 112, 120, 128, 136, 144, 168, 176, 184, 192, 200, 208, 216,
        224, 232, 240, 248,
    ];
    /// Those of some of them.
    pub(crate) const COMMITS: u32 = 0;
    pub(crate) const ROLLBACKS: u32 = 8;
    pub(crate) const BLOCKS_FETCHED: u32 = 16;
    pub(crate) const BLOCKS_HIT: u32 = 24;
    pub(crate) const TUPLES_RETURNED: u32 = 32;
    pub(crate) const TUPLES_FETCHED: u32 = 40;
    pub(crate) const TUPLES_INSERTED: u32 = 48;
    pub(crate) const TUPLES_UPDATED: u32 = 56;
    pub(crate) const TUPLES_DELETED: u32 = 64;
    pub(crate) const TEMPORARY_FILES: u32 = 128;
    pub(crate) const TEMPORARY_BYTES: u32 = 136;
    pub(crate) const DEADLOCKS: u32 = 144;
}

/// Numbers of system caches: `enum SysCacheIdentifier` (generated from `MAKE_SYSCACHE` in `src/include/catalog`).
pub(crate) mod system_cache {
    pub(crate) const PUBLICATION_NAMESPACE_MAP: i32 = 50;
    pub(crate) const PUBLICATION_RELATION_MAP: i32 = 53;
    pub(crate) const REPLICATION_ORIGIN: i32 = 58;
    pub(crate) const TYPE: i32 = 82;
}

/// `struct StringInfoData` (`src/include/lib/stringinfo.h`).
pub(crate) mod string_info {
    /// Offset of `data`, a pointer.
    pub(crate) const DATA: u32 = 0;
    /// Offset of `len`, an `int`.
    pub(crate) const LENGTH: u32 = 4;
    /// Offset of `maxlen`, an `int`: how many bytes there is room for.
    pub(crate) const SIZE: u32 = 8;
}

/// `struct List` (`src/include/nodes/pg_list.h`), and the tags of lists of numbers (`src/include/nodes/nodetags.h`).
pub(crate) mod pg_list {
    /// Offset of `length`, an `int`.
    pub(crate) const LENGTH: u32 = 4;
    /// Offset of `elements`, a pointer to cells of 4 bytes.
    pub(crate) const ELEMENTS: u32 = 12;
    /// `T_XidList`
    pub(crate) const TAG_OF_TRANSACTIONS: u32 = 473;
}

/// `struct Bitmapset` (`src/include/nodes/bitmapset.h`).
pub(crate) mod bitmapset {
    /// Offset of `nwords`, an `int`.
    pub(crate) const WORDS: u32 = 4;
    /// Offset of the words, of 32 bits each.
    pub(crate) const FIRST: u32 = 8;
}

/// `HeapTupleData` and `HeapTupleHeaderData` (`src/include/access/htup.h`, `htup_details.h`).
pub(crate) mod heap_tuple {
    /// Offset of `t_data`, a pointer to the header.
    pub(crate) const HEADER: u32 = 16;
    /// Offset of `t_hoff` in the header, a byte: where the columns begin.
    pub(crate) const COLUMNS: u32 = 22;
}

/// `struct TupleDescData` (`src/include/access/tupdesc.h`).
pub(crate) mod tuple_descriptor {
    /// Offset of `natts`, an `int`.
    pub(crate) const COLUMNS: u32 = 0;
    /// Offset of the `CompactAttribute` of each column, and their size; the rows of `pg_attribute` follow.
    pub(crate) const COMPACT: u32 = 20;
    pub(crate) const COMPACT_SIZE: u32 = 16;
}

/// A row of `pg_attribute` (`src/include/catalog/pg_attribute.h`).
pub(crate) mod attribute {
    /// Offset of `attname`, of 64 bytes.
    pub(crate) const NAME: u32 = 4;
    /// Offset of `atttypid`.
    pub(crate) const TYPE: u32 = 68;
    /// Offset of `attlen`, an `int16`.
    pub(crate) const LENGTH: u32 = 72;
    /// Offset of `attnum`, an `int16`.
    pub(crate) const NUMBER: u32 = 74;
    /// Offset of `atttypmod`.
    pub(crate) const MODIFIER: u32 = 76;
    /// Offset of `attgenerated`, a character, and its value for columns that are stored.
    pub(crate) const GENERATED: u32 = 90;
    pub(crate) const STORED: u8 = b's';
    /// Offset of `attisdropped`, a boolean.
    pub(crate) const IS_DROPPED: u32 = 91;
    /// The size of the part that every row has (`ATTRIBUTE_FIXED_PART_SIZE`).
    pub(crate) const SIZE: u32 = 100;
}

/// `struct TupleTableSlot` (`src/include/executor/tuptable.h`).
pub(crate) mod slot {
    /// Offset of `tts_nvalid`, an `int16`.
    pub(crate) const VALID: u32 = 6;
    /// Offset of `tts_tupleDescriptor`, a pointer.
    pub(crate) const DESCRIPTOR: u32 = 12;
    /// Offset of `tts_values`, a pointer to words.
    pub(crate) const VALUES: u32 = 16;
    /// Offset of `tts_isnull`, a pointer to booleans.
    pub(crate) const NULLS: u32 = 20;
}

/// `struct RelationData` (`src/include/utils/rel.h`).
pub(crate) mod relation {
    /// Offset of `rd_indexvalid`, a boolean.
    pub(crate) const KNOWS_INDEXES: u32 = 27;
    /// Offset of `rd_rel`, a pointer to a row of `pg_class`.
    pub(crate) const CLASS: u32 = 48;
    /// Offset of `rd_att`, a pointer to the descriptor of its columns.
    pub(crate) const DESCRIPTOR: u32 = 52;
    /// Offset of `rd_id`.
    pub(crate) const ID: u32 = 56;
    /// Offset of `rd_replidindex`, the index that is its replica identity, or 0.
    pub(crate) const REPLICA_INDEX: u32 = 144;
    /// Offset of `rd_index`, a pointer to a row of `pg_index`.
    pub(crate) const INDEX: u32 = 192;
}

/// A row of `pg_class` (`src/include/catalog/pg_class.h`).
pub(crate) mod class {
    /// Offset of `relname`, of 64 bytes.
    pub(crate) const NAME: u32 = 4;
    /// Offset of `relnamespace`.
    pub(crate) const NAMESPACE: u32 = 68;
    /// Offset of `relhasindex`, a boolean.
    pub(crate) const HAS_INDEX: u32 = 116;
    /// Offset of `relpersistence`, a character, and its value for permanent relations.
    pub(crate) const PERSISTENCE: u32 = 118;
    pub(crate) const PERMANENT: u8 = b'p';
    /// Offset of `relkind`, a character, and its values for tables.
    pub(crate) const KIND: u32 = 119;
    pub(crate) const TABLES: [u8; 2] = [b'r', b'p'];
    /// Offset of `relreplident`, a character, and its value when all columns are the replica identity.
    pub(crate) const REPLICA_IDENTITY: u32 = 130;
    pub(crate) const FULL: u8 = b'f';
    /// `FirstNormalObjectId` (`src/include/access/transam.h`)
    pub(crate) const FIRST_OF_USERS: u32 = 16384;
}

/// A row of `pg_index` (`src/include/catalog/pg_index.h`).
pub(crate) mod index {
    /// Offset of `indnkeyatts`, an `int16`.
    pub(crate) const KEYS: u32 = 10;
    /// Offset of the values of `indkey`, of type `int16`.
    pub(crate) const COLUMNS: u32 = 48;
}

/// A row of `pg_type` (`src/include/catalog/pg_type.h`).
pub(crate) mod data_type {
    /// Offset of `typname`, of 64 bytes.
    pub(crate) const NAME: u32 = 4;
    /// Offset of `typnamespace`.
    pub(crate) const NAMESPACE: u32 = 68;
    /// Offset of `typoutput`.
    pub(crate) const OUTPUT: u32 = 104;
    /// Offset of `typsend`.
    pub(crate) const SEND: u32 = 112;

    /// Object identifiers of types (`src/include/catalog/pg_type.dat`).
    pub(crate) const INT8: u32 = 20;
    pub(crate) const INT2: u32 = 21;
    pub(crate) const INT4: u32 = 23;
    pub(crate) const TEXT: u32 = 25;
    pub(crate) const VARCHAR: u32 = 1043;
}

/// Values of a length that varies (`src/include/varatt.h`).
pub(crate) mod varlena {
    /// The first byte of one that is elsewhere (`VARATT_IS_1B_E`).
    pub(crate) const IS_ELSEWHERE: u8 = 1;
    /// The second byte of one that is in a TOAST table (`VARTAG_ONDISK`).
    pub(crate) const ON_DISK: u8 = 18;
    /// The size of a long header, whose upper 30 bits are the length with it.
    pub(crate) const HEADER: u32 = 4;
    /// This bit of the first byte is set in a short header, whose upper seven bits are the length with it.
    pub(crate) const IS_SHORT: u8 = 1;
    /// This bit of the first byte of a long header is set if the value is compressed.
    pub(crate) const IS_COMPRESSED: u8 = 2;
    /// The size of a short header.
    pub(crate) const SHORT_HEADER: u32 = 1;
}

/// `struct ArrayType` (`src/include/utils/array.h`).
pub(crate) mod array {
    /// Offset of the first of its dimensions, an `int`.
    pub(crate) const DIMENSION: u32 = 16;
    /// Offset of the elements of an array with one dimension and without nulls.
    pub(crate) const ELEMENTS: u32 = 24;
}

/// `struct ReorderBufferTXN` (`src/include/replication/reorderbuffer.h`).
pub(crate) mod decoded_transaction {
    /// Offset of `xid`.
    pub(crate) const ID: u32 = 4;
    /// Offset of `gid`, a pointer to a string.
    pub(crate) const GLOBAL_ID: u32 = 12;
    /// Offset of `final_lsn`.
    pub(crate) const FINAL_LSN: u32 = 24;
    /// Offset of `end_lsn`.
    pub(crate) const END_LSN: u32 = 32;
    /// Offset of `xact_time`, when it was committed, prepared or aborted.
    pub(crate) const TIME: u32 = 72;
}

/// `struct LogicalDecodingContext` (`src/include/replication/logical.h`).
pub(crate) mod decoding {
    /// Offset of `update_progress`, a pointer to a function.
    pub(crate) const UPDATE_PROGRESS: u32 = 128;
    /// Offset of `write_location`, an `XLogRecPtr`.
    pub(crate) const WRITE_LOCATION: u32 = 152;
    /// Offset of `write_xid`.
    pub(crate) const WRITE_TRANSACTION: u32 = 160;
}

/// `struct Publication` (`src/include/catalog/pg_publication.h`), and columns of `pg_publication_rel`.
pub(crate) mod publication {
    /// Offset of `oid`.
    pub(crate) const ID: u32 = 0;
    /// Offset of `alltables`, a boolean.
    pub(crate) const HAS_ALL_TABLES: u32 = 8;
    /// `PUBLISH_GENCOLS_STORED`
    pub(crate) const STORED_COLUMNS: u8 = b's';
    /// The number of the column `prattrs` (`src/include/catalog/pg_publication_rel.h`).
    pub(crate) const COLUMNS: i32 = 5;
}

/// A row of `pg_replication_origin` (`src/include/catalog/pg_replication_origin.h`).
pub(crate) mod replication_origin {
    /// Offset of `roname`, a `text`.
    pub(crate) const NAME: u32 = 4;
}

/// `PG_CATALOG_NAMESPACE` (`src/include/catalog/pg_namespace.dat`)
pub(crate) const CATALOG_NAMESPACE: u32 = 11;

/// `OR_EXPR`, a `BoolExprType` (`src/include/nodes/primnodes.h`).
pub(crate) const OR_EXPRESSION: i32 = 1;

/// `MAX_RELSYNC_CALLBACKS` (`src/backend/utils/cache/inval.c`)
pub(crate) const RELATION_SYNC_CALLBACKS_MAX: u32 = 10;
