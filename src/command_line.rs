//! The command line: commands and their options.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand};
use pglite_port::{databases::Settings, pruning, serve, session::Mode};

use super::dumps::RunOptions;
use super::moves::MoveOptions;
use super::options::{
    AccessOptions, ClusterLimits, LimitOptions, MetricsOptions, SharedOptions, TestOptions, TlsOptions, interval,
    permissions, seconds,
};

/// Real PostgreSQL (the official PGlite build) in Wasmtime, for clients on a socket or in frames over stdin and
/// stdout.
///
/// The program's log goes to stderr; `PGLITE_PORT_LOG` filters it (error, warn, info, debug, trace, or
/// target=level,...; info by default).
#[derive(Parser)]
#[command(version)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) engine: EngineOptions,
    /// What each connection gets: `shared` (a session of one cluster) or `isolated` (its own cluster, removed when the
    /// connection closes)
    #[arg(long, global = true, default_value_t)]
    pub(crate) mode: Mode,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serve connections in frames on stdin and stdout, as a child of the program that owns the connections
    Port {
        #[command(flatten)]
        clusters: ClusterOptions,
        #[command(flatten)]
        tests: TestOptions,
        #[command(flatten)]
        metrics: MetricsOptions,
        /// How long the program may take to stop after a request or a signal: its sessions end, and the shared cluster
        /// is shut down. Then it ends anyway, and a cluster in a directory recovers at its next start
        #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
        shutdown_timeout: Duration,
    },
    /// Listen on a socket for psql and all other clients, and print the URL when they can connect
    Serve {
        /// Where to listen: HOST:PORT (all addresses of the host; port 0 for any free port), unix:PATH (in a directory,
        /// `.s.PGSQL.5432`), or `systemd` for the sockets of the socket unit by which the program was started
        #[arg(long, value_name = "ADDRESS", default_value = serve::DEFAULT_LISTEN)]
        listen: String,
        /// The permissions of a unix socket's file, such as 0660; who can write it can connect [default: those that the
        /// umask leaves]
        #[arg(long, value_name = "MODE", value_parser = permissions)]
        socket_mode: Option<u32>,
        #[command(flatten)]
        clusters: ClusterOptions,
        #[command(flatten)]
        tls: TlsOptions,
        #[command(flatten)]
        metrics: MetricsOptions,
        /// Listen on an address that other machines can reach although every client is let in as the role that it
        /// names, also as the superuser
        #[arg(long)]
        trust_everyone_who_can_connect: bool,
        /// How long the program may take to stop after a signal: its sessions end, and the shared cluster is shut
        /// down. Then, or at a second signal, it ends anyway, and a cluster in a directory recovers at its next start
        #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
        shutdown_timeout: Duration,
    },
    /// Prepare a template with SQL files; connections in mode `isolated` get clones of templates
    Prepare {
        /// The template's name: a client that asks for a database of this name gets a clone of the template
        name: String,
        /// An SQL file to run in the database, as one transaction unless it contains its own; files run in the given
        /// order
        #[arg(long, value_name = "FILE")]
        sql: Vec<PathBuf>,
        /// The name of the database in the template; clients can ask for it by this name as well [default: NAME]
        #[arg(long)]
        database: Option<String>,
        /// The role that owns the database and runs the SQL, a superuser; created unless it is postgres
        #[arg(long, value_name = "ROLE", default_value = "postgres")]
        user: String,
        #[command(flatten)]
        limits: ClusterLimits,
    },
    /// List the templates, or remove one
    Templates {
        /// Remove this template; connections that have a clone of it keep the clone
        #[arg(long, value_name = "NAME")]
        remove: Option<String>,
    },
    /// Write a template into one file, for other caches on this machine and on others
    ///
    /// `import` puts it into the cache there. The program there has to be of the same version, with the same PGlite and
    /// the same extensions; the processor may be another one.
    Export {
        /// The template's name
        name: String,
        /// The file; an existing one is replaced when it is complete. `-` is stdout
        file: PathBuf,
    },
    /// Put a template that `export` has written into the cache
    ///
    /// One of the same name is replaced; connections that have a clone of it keep the clone. The digests of all files
    /// are verified.
    Import {
        /// The file; `-` is stdin
        file: PathBuf,
    },
    /// Back a cluster up into one file, also while it runs
    ///
    /// The file is a tar archive of the data directory, which `restore` and PGlite's `loadDataDir` take. The checksums
    /// of all pages are verified on the way.
    Backup {
        /// The URL of a server that runs, with a superuser's name; or the data directory of one that is stopped
        #[arg(value_name = "URL|DIRECTORY")]
        from: String,
        /// The file; compressed if its name ends in gz. An existing file is replaced when the backup is complete. `-`
        /// is stdout
        file: PathBuf,
        /// Make the backup even if pages have a wrong checksum
        #[arg(long)]
        no_verify_checksums: bool,
    },
    /// Restore a backup into a new data directory
    ///
    /// The backup may be one of PGlite's `dumpDataDir`. All checksums are verified. When the command is done,
    /// everything is on the disk; if it fails or is killed, the directory has no cluster.
    Restore {
        /// The file, compressed or not; `-` is stdin
        file: PathBuf,
        /// The directory, empty or not there yet
        directory: PathBuf,
        /// Restore the backup even if pages have a wrong checksum
        #[arg(long)]
        no_verify_checksums: bool,
    },
    /// Dump a database with PostgreSQL's `pg_dump`, which need not be installed
    ///
    /// The dump goes to stdout, or into `--file FILE`, which appears when it is complete. `--data DIRECTORY` starts the
    /// cluster in that directory for the dump. All other options are `pg_dump`'s, and follow those of this program:
    /// `pglite-port dump -- --help` lists them. Custom and tar dumps are restored by PostgreSQL's `pg_restore`, plain
    /// ones by `run`.
    #[command(disable_help_flag = true)]
    Dump {
        /// Print this help
        #[arg(long, action = ArgAction::HelpLong)]
        help: Option<bool>,
        /// The server's URL or the database, and the options of `pg_dump`, in any order
        #[arg(value_name = "URL|--data DIRECTORY|OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run an SQL file, such as a plain dump
    ///
    /// The file is read while it runs. `COPY ... FROM stdin` with its rows and the commands of psql that `pg_dump`
    /// writes are understood, other commands of psql are not. The first error stops it, with its line.
    Run(RunOptions),
    /// Move a database to another server while it is in use, by logical replication
    ///
    /// The target gets the schema and a subscription, which copies the rows and follows the changes. Then writes to the
    /// source are stopped for a moment, and all tables are compared. Until then the move can be broken off (Ctrl-C): the
    /// source is as it was, and the target is empty again. Afterwards the source can only be read.
    Move(MoveOptions),
    /// Print the facts that the rewriter finds in `pglite.wasm`, one on each line, to compare versions with diff
    Evidence {
        /// The file, of any version of PGlite [default: the supported one, found as by the other commands]
        file: Option<PathBuf>,
    },
    /// Tell whether a server takes clients: exit with status 0 if it does, 1 if it refuses them, 2 if nothing answers
    ///
    /// A server that asks for a password takes clients. One that starts or recovers refuses them.
    Ready {
        /// The server's URL, or a connection string
        url: String,
        /// How long the server may take to answer
        #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
        timeout: Duration,
    },
    /// Compile PostgreSQL and its libraries for the machines of a triple, into a new directory, for `code/` beside a
    /// program
    #[command(hide = true)]
    Compile {
        /// The architecture and system, such as `aarch64-unknown-linux-gnu`
        #[arg(value_name = "TRIPLE")]
        target: String,
        /// The directory
        #[arg(value_name = "DIRECTORY")]
        into: PathBuf,
    },
    /// Show the metrics of a running program in a terminal
    ///
    /// Sessions and rates of each cluster, the busiest first. q quits. Without a terminal, they are printed once.
    Top {
        /// Where the program answers, which it was told by --metrics
        #[arg(value_name = "HOST:PORT", default_value = "127.0.0.1:9187")]
        address: String,
        /// The time between two looks, in seconds
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
        interval: Duration,
        /// Print the metrics once, of one interval
        #[arg(long)]
        once: bool,
    },
    /// List the cache, or remove entries that have not been used for long
    ///
    /// `port` and `serve` remove entries that have not been used for 30 days by themselves, once a day.
    Cache {
        /// Remove entries that no process uses and that can be made again: compiled code, new clusters, and what other
        /// versions of the program have built of templates; templates themselves stay
        #[arg(long)]
        prune: bool,
        /// Remove entries that have not been used for this many days
        #[arg(long, value_name = "DAYS", requires = "prune", default_value_t = pruning::UNUSED_FOR_DAYS)]
        older_than: u32,
        /// Also remove the entries that have not been used for the longest time, until at most this size remains
        #[arg(long, value_name = "MB", requires = "prune")]
        max_size: Option<u32>,
    },
}

/// How clusters are made, and who gets in.
#[derive(Args)]
pub(crate) struct ClusterOptions {
    #[command(flatten)]
    pub(crate) clones: CloneOptions,
    #[command(flatten)]
    pub(crate) shared: SharedOptions,
    #[command(flatten)]
    pub(crate) limits: LimitOptions,
    #[command(flatten)]
    pub(crate) access: AccessOptions,
}

impl ClusterOptions {
    /// Reads the files, and sets the limit of the program's memory. `patience` is how long to wait for a data directory
    /// that another process has open.
    ///
    /// # Errors
    /// When a file cannot be read, or a limit is too low.
    pub(crate) fn settings(&self, mode: Mode, patience: Duration) -> anyhow::Result<Settings> {
        let shared = self.shared.settings(patience, self.access.open()?);
        let (max_isolated, limits) = (self.shared.max_isolated(mode), self.limits.apply()?);
        Ok(Settings { warm: self.clones.warm, max_isolated, limits, shared, ..Settings::default() })
    }
}

/// Clones for connections in mode `isolated`.
#[derive(Args)]
pub(crate) struct CloneOptions {
    /// Keep this many clones ready of each template in use, and replace them in the background
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) warm: usize,
}

/// The places of the engine's files.
#[derive(Args)]
pub(crate) struct EngineOptions {
    /// Directory with the files of the PGlite package (its `dist`) [default: found in `pglite` beside the program,
    /// `priv` or `pglite/node_modules`]
    #[arg(long, global = true, value_name = "DIRECTORY", env = "PGLITE_DIR")]
    pub(crate) pglite_dir: Option<PathBuf>,
    /// Directory for compiled code and prepared clusters [default: $XDG_CACHE_HOME/pglite-port]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Data of ICU 76 for languages with their own collation: a directory or a package (`icudt76l.dat`)
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) icu_data: Option<PathBuf>,
    /// Offer the extensions in this file to every cluster, besides those of PGlite and of the packages beside it: a
    /// `.tar.gz` with `share/postgresql/extension/*` and `lib/postgresql/*.so`. Its libraries are trusted. Can be given
    /// several times
    #[arg(long = "extension", global = true, value_name = "FILE")]
    pub(crate) extensions: Vec<PathBuf>,
    /// Let superusers load libraries from files that SQL has written (`LOAD`, `CREATE FUNCTION ... LANGUAGE C`); their
    /// code runs in the sandbox of WebAssembly, but may run for ever. Without this, only the
    /// libraries of PGlite, of the packages beside it and of `--extension` are loaded
    #[arg(long, global = true)]
    pub(crate) allow_user_libraries: bool,
}
