//! What can be chosen for a shared cluster.

use std::time::Duration;

use anyhow::bail;

use super::{
    super::{Access, attached::Kind},
    DataDirectory,
};
use crate::{
    backend::{FIXED_PARAMETERS, HBA_FILE, IN_MEMORY, parameter},
    cluster::Slice,
};

/// Settings of a shared cluster, with defaults fit for an embedded database.
#[derive(Clone, Debug)]
pub struct SharedSettings {
    /// How many clients can be connected at once (`max_connections`).
    pub max_connections: u16,
    /// The size of `shared_buffers` in MiB.
    pub shared_buffers: u32,
    /// Where the cluster is kept; without it is in memory, and gone with the program.
    pub data_directory: Option<DataDirectory>,
    /// The template that a new cluster is a copy of; without, it is an empty one.
    pub template: Option<String>,
    /// How long to wait until another program has let go of the data directory.
    pub data_patience: Duration,
    /// Further settings of `PostgreSQL`, by their names (`postgresql.conf`).
    pub further: Vec<(String, String)>,
    /// Whether tables are vacuumed and analyzed without being asked.
    pub autovacuum: bool,
    /// Whether the settings of `ALTER SYSTEM` are left out, for a cluster that does not start with them.
    pub ignore_auto_conf: bool,
    /// How long a turn of a session may last while another one waits.
    pub slice: Duration,
    /// Who gets in.
    pub access: Access,
}

/// Settings of a cluster in memory, where WAL is only needed to recover from a crash of a session.
const IN_MEMORY_SETTINGS: [&str; 7] = [
    IN_MEMORY,
    "-cwal_init_zero=off",
    "-cwal_recycle=off",
    "-cmax_wal_size=128MB",
    // Pages are written to memory, which need not be spread over time, and WAL goes the sooner.
    "-ccheckpoint_completion_target=0",
    // Nothing but a backup keeps WAL from being removed, and that within limits: it is memory.
    "-cwal_keep_size=0",
    "-cmax_slot_wal_keep_size=1GB",
];

/// Settings of a cluster in a directory.
const DURABLE_SETTINGS: [&str; 4] = [
    // A subscriber that does not come back must not fill the disk.
    "-cmax_slot_wal_keep_size=10GB",
    // How often a recovery that takes long is logged.
    "-clog_startup_progress_interval=1s",
    // The process that is about to sync WAL always lets the others have their turns before, so that their commits are
    // in it (`XLogFlush` in `src/backend/access/transam/xlog.c`). A sleep that short takes no time if no other process
    // waits for its turn (`guest/interrupts.rs`).
    "-ccommit_delay=1",
    "-ccommit_siblings=0",
];

impl Default for SharedSettings {
    fn default() -> Self {
        Self {
            max_connections: 100,
            shared_buffers: 64,
            data_directory: None,
            template: None,
            data_patience: Duration::ZERO,
            further: Vec::new(),
            autovacuum: true,
            ignore_auto_conf: false,
            slice: Slice::default().0,
            access: Access::default(),
        }
    }
}

impl SharedSettings {
    /// The same for a cluster in memory that is no copy of the template.
    pub(crate) fn in_memory(&self) -> Self {
        Self { data_directory: None, template: None, ..self.clone() }
    }

    /// The same for a branch, whose roles have the passwords that they have in its origin.
    pub(crate) fn of_branch(&self) -> Self {
        Self { access: Access { password: None, ..self.access.clone() }, ..self.in_memory() }
    }

    /// # Errors
    /// When one of them cannot be chosen.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let is_fixed = |name: &str| {
            FIXED_PARAMETERS.iter().any(|fixed| fixed.trim_start_matches("-c").split('=').next() == Some(name))
        };
        match self.further.iter().find(|(name, _)| is_fixed(&name.to_ascii_lowercase())) {
            Some((name, _)) => {
                bail!("{name} cannot be set: a cluster in this program has no processes or memory of that kind")
            }
            None => Ok(()),
        }
    }

    /// How many places there are for clients: those for every role, and all, some of which may be kept for superusers
    /// (`src/backend/utils/init/postinit.c`).
    pub(super) fn places(&self, kind: Kind) -> [usize; 2] {
        let chosen = |name: &str, default: usize| {
            parameter(&self.further, name).and_then(|value| value.trim().parse().ok()).unwrap_or(default)
        };
        if kind == Kind::Sender {
            return [chosen("max_wal_senders", 10); 2];
        }
        let all = chosen("max_connections", self.max_connections.into());
        let reserved = chosen("superuser_reserved_connections", 3) + chosen("reserved_connections", 0);
        [all.saturating_sub(reserved), all]
    }

    /// As arguments of `postgres`.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("-cmax_connections={}", self.max_connections),
            format!("-cshared_buffers={}MB", self.shared_buffers),
            // What fits into the main segment costs a session no mapping of its own.
            "-cmin_dynamic_shared_memory=16MB".to_owned(),
            format!("-cautovacuum={}", self.autovacuum),
        ];
        let settings = if self.data_directory.is_none() { &IN_MEMORY_SETTINGS[..] } else { &DURABLE_SETTINGS };
        arguments.extend(settings.iter().map(|setting| (*setting).to_owned()));
        arguments.extend(self.further.iter().map(|(name, value)| format!("-c{name}={value}")));
        arguments.extend(self.access.rules.iter().map(|_| format!("-chba_file={HBA_FILE}")));
        arguments
    }
}
