//! Groups of options on the command line, and values of options.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use clap::{ArgAction, Args, value_parser};
use pglite_port::{
    connection::{authentication_timeout, startup_timeout, unreadable_timeout},
    databases::{Access, Authentication, DataDirectory, Leave, Password, Rules, SharedSettings},
    metrics::Endpoint,
    pruning::Stock,
    quota::{Limits, ProgramLimit, Size, limit_program},
    serve::{Tls, TlsFiles, TlsVersion},
    session::Mode,
};

/// The superuser that `initdb` makes.
const BOOTSTRAP_USER: &str = "postgres";

/// What requests may choose for clusters, for tests.
#[derive(Args)]
pub(crate) struct TestOptions {
    /// Let requests set the clocks of clusters, for tests of what depends on the time
    #[arg(long)]
    allow_clock: bool,
    /// Let requests seed the random numbers of clusters, for tests that need the same ones each time; numbers and
    /// UUIDs are then predictable
    #[arg(long)]
    allow_seed: bool,
}

impl TestOptions {
    pub(crate) fn leave(&self) -> Leave {
        Leave { clock: self.allow_clock, seed: self.allow_seed }
    }
}

/// How much memory and disk clusters may use.
#[derive(Args)]
pub(crate) struct LimitOptions {
    /// The memory of the program: what would need more is an error of the statement that needs it (53200, 53100). `none`
    /// for no limit [default: three quarters of what the system or the control group has]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<ProgramLimit>,
    #[command(flatten)]
    clusters: ClusterLimits,
}

/// The limits of clusters.
#[derive(Args)]
pub(crate) struct ClusterLimits {
    /// The memory of a cluster that has no limit of its own, such as 512MB: what its sessions add, and its files in memory
    /// [default: none; for a cluster of one connection, a quarter of the program's]
    #[arg(long = "cluster-memory-limit", value_name = "SIZE")]
    memory: Option<Size>,
    /// The size of the files of a cluster that has no limit of its own [default: none]
    #[arg(long = "cluster-disk-limit", value_name = "SIZE")]
    disk: Option<Size>,
}

impl LimitOptions {
    /// Sets the program's limit; returns those of clusters.
    ///
    /// # Errors
    /// When one is too low.
    pub(crate) fn apply(&self) -> anyhow::Result<Limits> {
        let limits = self.clusters.limits()?;
        limit_program(self.memory_limit.unwrap_or_default())?;
        Ok(limits)
    }
}

impl ClusterLimits {
    /// # Errors
    /// When one is too low.
    pub(crate) fn limits(&self) -> anyhow::Result<Limits> {
        Ok(Limits { memory: self.memory.map(|size| size.0), disk: self.disk.map(|size| size.0) }.check()?)
    }
}

/// What can be watched.
#[derive(Args, Default)]
pub(crate) struct MetricsOptions {
    /// Answer HTTP requests of Prometheus here, for /metrics, and for /healthz and /readyz; the answers contain names
    /// of clusters, and no data
    #[arg(long = "metrics", value_name = "HOST:PORT")]
    address: Option<String>,
}

impl MetricsOptions {
    /// Begins to answer, if that is asked for; the clusters are watched later. The cache is that of `engine`.
    pub(crate) fn start(&self, cache_dir: Option<PathBuf>) -> anyhow::Result<Option<Endpoint>> {
        let Some(address) = &self.address else { return Ok(None) };
        let cache_size = move || {
            let entries = Stock::open(cache_dir.as_deref())?.entries()?;
            Ok(entries.iter().map(|entry| entry.size).sum())
        };
        Endpoint::start(address, cache_size).map(Some)
    }
}

/// Who gets in.
#[derive(Args)]
pub(crate) struct AccessOptions {
    /// How clients authenticate: `trust` (not at all), `scram-sha-256` (by passwords), or a file with rules in the format
    /// of `pg_hba.conf`, which is read again at a reload; without this, the rules in the data directory decide, which
    /// trust every client in a new cluster
    #[arg(long, value_name = "trust|scram-sha-256|FILE")]
    auth: Option<Authentication>,
    /// A file whose first line is the password of the superuser `postgres`, which is set at every start
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The role that gets the password of --password-file, if there is such a role
    #[arg(long, value_name = "ROLE", requires = "password_file", default_value = BOOTSTRAP_USER)]
    password_user: String,
}

impl AccessOptions {
    /// Reads the files.
    pub(crate) fn open(&self) -> anyhow::Result<Access> {
        let rules = self.auth.clone().map(Rules::open).transpose()?.map(Arc::new);
        let file = self.password_file.as_deref();
        let password = file.map(|file| Password::read(file, &self.password_user)).transpose()?;
        Ok(Access { rules, password, ..Access::default() })
    }

    /// # Errors
    /// When no client could get in.
    pub(crate) fn check_password(&self, mode: Mode, shared: &SharedOptions) -> anyhow::Result<()> {
        let needs_passwords = self.auth == Some(Authentication::ScramSha256);
        let is_empty = mode == Mode::Shared && shared.data.is_none() && shared.template.is_none();
        ensure!(
            !needs_passwords || !is_empty || self.password_file.is_some(),
            "no role of a new cluster has a password, so no client could get in: give --password-file FILE as well"
        );
        Ok(())
    }

    /// Whether every client that reaches the program gets in.
    pub(crate) fn trust_everyone(&self) -> bool {
        self.auth.as_ref().is_none_or(|auth| *auth == Authentication::Trust)
    }
}

/// Encryption of connections over TCP.
#[derive(Args)]
pub(crate) struct TlsOptions {
    /// Let clients encrypt their connections with the certificate in this file (PEM), which is read again at a `SIGHUP`
    #[arg(long = "tls-cert", value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The private key of the certificate (PEM)
    #[arg(long = "tls-key", value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Verify certificates of clients by those of the authorities in this file (PEM); clients need not have one
    #[arg(long = "tls-client-ca", value_name = "FILE", requires = "certificate")]
    client_authorities: Option<PathBuf>,
    /// The oldest version of TLS
    #[arg(long = "tls-min-version", value_name = "1.2|1.3", default_value_t, requires = "certificate")]
    min_version: TlsVersion,
}

impl TlsOptions {
    /// Reads the files.
    pub(crate) fn open(&self) -> anyhow::Result<Option<Arc<Tls>>> {
        let (Some(certificate), Some(key)) = (self.certificate.clone(), self.key.clone()) else { return Ok(None) };
        let client_authorities = self.client_authorities.clone();
        let files = TlsFiles { certificate, key, client_authorities, min_version: self.min_version };
        Ok(Some(Arc::new(Tls::open(files)?)))
    }
}

/// Options of the shared cluster.
#[derive(Args)]
pub(crate) struct SharedOptions {
    /// Keep the shared cluster in this directory of the host, which gets a new one if it is empty or not there;
    /// without this, the cluster is in memory, and gone with the program
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
    /// Start a new shared cluster as a copy of this template; a cluster that is in the directory already is opened as
    /// it is
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// The maximum number of clients that are connected to a cluster at the same time [default: 100]; in mode isolated
    /// also of all clients that have a cluster of their own [default: as many as the system allows]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..))]
    max_connections: Option<u16>,
    /// Size of the shared cluster's `shared_buffers` in MB
    #[arg(long, value_name = "MB", default_value_t = SharedSettings::default().shared_buffers)]
    shared_buffers: u32,
    /// Whether the shared cluster vacuums and analyzes tables automatically: on or off
    #[arg(long, value_name = "on|off", default_value = "on", action = ArgAction::Set, value_parser = on_or_off)]
    autovacuum: bool,
    /// Start the shared cluster without the settings of `ALTER SYSTEM`; rename postgresql.auto.conf to
    /// postgresql.auto.conf.ignored
    #[arg(long)]
    ignore_auto_conf: bool,
    /// How many microseconds a turn of a session may last while another one waits; for tests
    #[arg(long, value_name = "MICROSECONDS", hide = true, value_parser = value_parser!(u32).range(50..))]
    slice: Option<u32>,
    /// Another setting of the shared cluster, as in postgresql.conf; can be given several times.
    /// `authentication_timeout` also limits TLS and the startup packet, and holds in both modes
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
}

impl SharedOptions {
    pub(crate) fn check(&self, mode: Mode) -> anyhow::Result<()> {
        ensure!(
            mode == Mode::Shared || self.data.is_none(),
            "--data is for mode shared: a cluster of one connection is gone when that closes"
        );
        ensure!(
            mode == Mode::Shared || self.template.is_none(),
            "--template is for mode shared: a connection in mode isolated gets the template of its database's name"
        );
        // No cluster starts with it, which would refuse it.
        if let (Mode::Isolated, Some(value)) = (mode, unreadable_timeout(&self.settings)) {
            bail!("authentication_timeout is \"{value}\", which is no time from 1s to 10min");
        }
        Ok(())
    }

    /// How many isolated connections there can be at once.
    pub(crate) fn max_isolated(&self, mode: Mode) -> Option<usize> {
        self.max_connections.filter(|_| mode == Mode::Isolated).map(usize::from)
    }

    /// How long a client may take over TLS and its startup packet.
    pub(crate) fn startup_timeout(&self) -> Duration {
        startup_timeout(&self.settings)
    }

    pub(crate) fn settings(&self, data_patience: Duration, access: Access) -> SharedSettings {
        SharedSettings {
            access: Access { authentication_timeout: authentication_timeout(&self.settings), ..access },
            data_patience,
            template: self.template.clone(),
            max_connections: self.max_connections.unwrap_or(SharedSettings::default().max_connections),
            shared_buffers: self.shared_buffers,
            autovacuum: self.autovacuum,
            data_directory: self.data.clone().map(DataDirectory::Host),
            further: self.settings.clone(),
            ignore_auto_conf: self.ignore_auto_conf,
            slice: self.slice.map_or(SharedSettings::default().slice, |slice| Duration::from_micros(slice.into())),
        }
    }
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("use on or off".to_owned()),
    }
}

/// The longest time on the command line, in days: longer than all waits, and far below the end of the system's clock.
const LONGEST: u64 = 365;

/// The shortest time between two looks.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "use a number of seconds")?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if time > Duration::from_hours(24 * LONGEST) {
        return Err(format!("use {LONGEST} days at most"));
    }
    Ok(time)
}

/// A time between two looks.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    let time = seconds(text)?;
    if time < SHORTEST_INTERVAL { Err("use 0.1 seconds or more".to_owned()) } else { Ok(time) }
}

/// The permissions of a file, as chmod takes them.
pub(crate) fn permissions(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "use an octal number of at most 777".to_owned())
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("use NAME=VALUE")?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte));
    if is_name {
        Ok((name.to_owned(), value.to_owned()))
    } else {
        Err(format!("{name:?} is not the name of a setting"))
    }
}
