//! Who gets in: the rules by which clients authenticate, and the password of the superuser.

use std::{
    convert::Infallible,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use parking_lot::RwLock;
use postgres_protocol::password::scram_sha_256;

use crate::{
    protocol::{error_response::sqlstate, hba, messages::SqlError},
    template::quote_identifier,
};

/// Everything about that, for all clusters of the program.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The rules; without, those in the data directory of a cluster decide, and trust every client until somebody changes
    /// them. Isolated connections trust every client without them.
    pub rules: Option<Arc<Rules>>,
    /// The password of a role, that of the superuser if nothing else is chosen.
    pub password: Option<Password>,
    /// How long the client of an isolated connection may take over its authentication, in whole seconds; without,
    /// `PostgreSQL`'s own minute, or what its template says. Shared clusters have it among their settings.
    pub authentication_timeout: Option<Duration>,
}

/// Where rules come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Every client is let in as the role that it names.
    Trust,
    /// Every client needs the password of its role.
    ScramSha256,
    /// As a file of the host says, in the format of `pg_hba.conf`.
    File(PathBuf),
}

impl FromStr for Authentication {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "trust" => Self::Trust,
            "scram-sha-256" => Self::ScramSha256,
            path => Self::File(path.into()),
        })
    }
}

impl fmt::Display for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trust => f.write_str("trust"),
            Self::ScramSha256 => f.write_str("scram-sha-256"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl Authentication {
    /// The rules, in the format of `pg_hba.conf`, as PGlite can follow them.
    fn read(&self) -> anyhow::Result<String> {
        // In the place of a database, "all" does not include replication.
        let all = |method| {
            let places = ["all", "replication"];
            let lines = |database| format!("local {database} all {method}\nhost {database} all all {method}\n");
            Ok(places.map(lines).concat())
        };
        match self {
            Self::Trust => all("trust"),
            Self::ScramSha256 => all("scram-sha-256"),
            Self::File(path) => Ok(hba::translate(&fs::read_to_string(path)?)?),
        }
    }
}

/// Rules that `PostgreSQL` follows in every cluster of the program.
#[derive(Debug)]
pub struct Rules {
    source: Authentication,
    /// Those in use.
    text: RwLock<Arc<str>>,
}

impl Rules {
    /// The rules of `source`, which is read now and at each reload.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(source: Authentication) -> anyhow::Result<Self> {
        let text = source.read().with_context(|| {
            format!("--auth {source} cannot be read: give trust, scram-sha-256 or a file with rules (pg_hba.conf)")
        })?;
        Ok(Self { source, text: RwLock::new(text.into()) })
    }

    /// Whether they let every client in without looking at it.
    pub(super) fn trust_everyone(&self) -> bool {
        self.source == Authentication::Trust
    }

    /// The rules in use.
    pub(super) fn text(&self) -> Arc<str> {
        self.text.read().clone()
    }

    /// The rules as they are in the source now, or those in use if it cannot be read.
    pub(super) fn next(&self) -> Arc<str> {
        match self.source.read() {
            Ok(text) => text.into(),
            Err(error) => {
                tracing::warn!("{} cannot be read: the rules before stay in use: {error:#}", self.source);
                self.text()
            }
        }
    }

    /// Uses `text` from now on, if PostgreSQL takes it.
    pub(super) fn adopt(&self, text: Arc<str>, is_accepted: bool) {
        if is_accepted {
            *self.text.write() = text;
        } else {
            tracing::warn!("{} was not reloaded: the rules before stay in use", self.source);
        }
    }
}

/// A password, kept as `PostgreSQL` stores it: what the program knows is enough to check the password, not to use it.
#[derive(Clone)]
pub struct Password {
    role: Arc<str>,
    verifier: Arc<str>,
}

impl Password {
    /// The password of `role` in the first line of the file `path`, as `initdb --pwfile` reads it.
    ///
    /// # Errors
    /// When it cannot be read, or that line is empty; when no role can have that name.
    pub fn read(path: &Path, role: &str) -> anyhow::Result<Self> {
        let role = quote_identifier(role)?.into();
        let text = fs::read(path).with_context(|| format!("--password-file {} cannot be read", path.display()))?;
        let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        ensure!(!line.is_empty(), "--password-file {}: its first line is empty", path.display());
        ensure!(!line.contains(&0), "--password-file {}: a password has no NUL byte", path.display());
        Ok(Self { role, verifier: scram_sha_256(line).into() })
    }

    /// The SQL that stores it. The verifier has no quotes in it: it is base64, digits, `$` and `:`.
    pub(super) fn statement(&self) -> String {
        format!("ALTER ROLE {} PASSWORD '{}'", self.role, self.verifier)
    }

    /// The result of having it stored. A role that is not there yet gets its password when it is made.
    pub(super) fn stored(&self, result: anyhow::Result<()>) -> anyhow::Result<()> {
        match result {
            Err(error) if error.downcast_ref::<SqlError>().is_some_and(|it| it.code == sqlstate::UNDEFINED_OBJECT) => {
                tracing::debug!("there is no role {} to have a password", self.role);
                Ok(())
            }
            result => result.with_context(|| format!("the password of the role {} cannot be set", self.role)),
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Password").field("role", &self.role).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(content).expect("a disk");
        file
    }

    #[test]
    fn a_password_is_kept_as_a_verifier_and_never_shown() {
        for content in [&b"secret"[..], b"secret\n", b"secret\r\nanother line\n"] {
            let password = Password::read(file(content).path(), "a role").expect("a password");
            let statement = password.statement();
            assert!(statement.starts_with("ALTER ROLE \"a role\" PASSWORD 'SCRAM-SHA-256$4096:"), "{statement}");
            assert_eq!(statement.matches('\'').count(), 2, "{statement}");
            assert!(!statement.contains("secret"), "{statement}");
            assert_eq!(format!("{password:?}"), "Password { role: \"\\\"a role\\\"\", .. }");
        }
    }

    #[test]
    fn a_file_without_a_password_is_refused() {
        for content in [&b""[..], b"\nsecret\n", b"\r\n", b"a\0b\n"] {
            assert!(Password::read(file(content).path(), "postgres").is_err(), "{content:?}");
        }
    }

    #[test]
    fn rules_that_are_refused_at_a_reload_leave_those_before_in_use() {
        let mut source = file(b"local all all trust\n");
        let rules = Rules::open(Authentication::File(source.path().to_owned())).expect("rules");
        source.write_all(b"nonsense\n").expect("a disk");
        rules.adopt(rules.next(), false);
        assert_eq!(&*rules.text(), "local all all trust\n");
        rules.adopt(rules.next(), true);
        assert_eq!(&*rules.text(), "local all all trust\nnonsense\n");
        source.close().expect("a disk");
        rules.adopt(rules.next(), true);
        assert!(rules.text().contains("nonsense"), "a file that is gone changes nothing");
    }
}
