//! What an address and the environment say about encryption, in libpq's words (`Parameter Key Words` in PostgreSQL's
//! manual).

use std::{fmt, path::PathBuf};

use anyhow::{bail, ensure};
use percent_encoding::percent_decode_str;

/// How the connections to a server are encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Encryption {
    pub(super) mode: Mode,
    /// Who vouches for the server.
    pub(super) authorities: Option<Authorities>,
    /// The files with the client's certificate and its key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

/// `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    Disable,
    /// If the server can. That is also what is done for `allow`, with which libpq first tries without.
    #[default]
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Authorities {
    /// `system`: those that the operating system trusts.
    System,
    /// Those in a file.
    File(PathBuf),
}

/// The names of the modes.
const MODES: [(&str, Mode); 6] = [
    ("disable", Mode::Disable),
    ("allow", Mode::Prefer),
    ("prefer", Mode::Prefer),
    ("require", Mode::Require),
    ("verify-ca", Mode::VerifyCa),
    ("verify-full", Mode::VerifyFull),
];

/// The parameters that are understood, and their variables.
const KNOWN: [(&str, &str); 4] =
    [("sslmode", "PGSSLMODE"), ("sslrootcert", "PGSSLROOTCERT"), ("sslcert", "PGSSLCERT"), ("sslkey", "PGSSLKEY")];

/// What these ask for is not there; they may have these values.
const OTHERS: [(&str, &str, &[&str]); 3] = [
    ("gssencmode", "PGGSSENCMODE", &["disable", "prefer"]),
    ("channel_binding", "PGCHANNELBINDING", &["disable", "prefer"]),
    ("sslnegotiation", "PGSSLNEGOTIATION", &["postgres"]),
];

/// How URLs begin.
const URLS: [&str; 2] = ["postgres://", "postgresql://"];

/// The beginning of the names of all other parameters of encryption.
const PREFIX: &str = "ssl";

/// The directory with a user's certificates, below the home directory.
const DIRECTORY: &str = ".postgresql";

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = MODES.iter().rfind(|(_, mode)| mode == self).copied().unwrap_or_default();
        formatter.write_str(name)
    }
}

/// The parts of an address.
#[derive(Default)]
struct Parts {
    /// The parameters of encryption in it.
    encryption: Vec<(String, String)>,
    /// The address without them.
    rest: String,
}

impl Parts {
    /// The last value of a parameter in the address that is not empty, or else that of the variable; and where it is.
    fn value<'n>(
        &self,
        (key, name): (&'n str, &'n str),
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Option<(&'n str, String)> {
        let given = self.encryption.iter().rev().find(|(given, value)| given == key && !value.is_empty());
        given.map(|(_, value)| (key, value.clone())).or_else(|| Some((name, variable(name)?)))
    }
}

/// An address, a URL or a connection string, without what it says about encryption; and what it says, or else the
/// environment.
///
/// # Errors
/// When that is not understood, or asks for something that is not there.
pub(super) fn take(address: &str, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<(String, Encryption)> {
    let parts = if URLS.iter().any(|url| address.starts_with(url)) { of_url(address) } else { of_string(address) };
    for (key, name, allowed) in OTHERS {
        let given = parts.value((key, name), &variable);
        if let Some((place, value)) = given.filter(|(_, value)| !allowed.contains(&value.as_str())) {
            bail!("{place}={value} asks for what this command does not do: use {key}={}", allowed[0]);
        }
    }
    let is_known =
        |key: &str| KNOWN.iter().any(|(known, _)| *known == key) || OTHERS.iter().any(|(other, _, _)| *other == key);
    if let Some((key, _)) = parts.encryption.iter().find(|(key, _)| !is_known(key)) {
        bail!("this command does not know {key}: leave it out of the address");
    }
    let [mode, authorities, certificate, key] = KNOWN.map(|names| parts.value(names, &variable));
    let home = variable("HOME").map(|home| PathBuf::from(home).join(DIRECTORY));
    let own = |name: &str| home.as_ref().map(|home| home.join(name)).filter(|path| path.exists());
    let is_system = authorities.as_ref().is_some_and(|(_, value)| value == "system");
    let mode = match mode {
        // As in libpq, whoever trusts all authorities of the world wants names to be compared.
        None if is_system => Mode::VerifyFull,
        None => Mode::default(),
        Some((place, value)) => {
            let named = MODES.iter().find(|(name, _)| *name == value).map(|(_, mode)| *mode);
            let Some(mode) = named else {
                bail!("{place}={value} is no mode of encryption: use {}", MODES.map(|(name, _)| name).join(", "))
            };
            ensure!(
                !is_system || matches!(mode, Mode::VerifyFull | Mode::Disable),
                "{place}={value} does not compare names, without which sslrootcert=system is worth nothing: use \
                 sslmode=verify-full"
            );
            mode
        }
    };
    let path = |given: Option<(&str, String)>| given.map(|(_, value)| PathBuf::from(value));
    let authorities = if is_system {
        Some(Authorities::System)
    } else {
        path(authorities).or_else(|| own("root.crt")).map(Authorities::File)
    };
    let certificate = path(certificate).or_else(|| own("postgresql.crt"));
    let identity = match (certificate, path(key).or_else(|| own("postgresql.key"))) {
        (Some(certificate), None) => {
            bail!("the certificate in {} has no key here: sslkey=FILE names it", certificate.display())
        }
        (certificate, key) => certificate.zip(key),
    };
    Ok((parts.rest, Encryption { mode, authorities, identity }))
}

fn is_of_encryption(key: &str) -> bool {
    key.starts_with(PREFIX) || OTHERS.iter().any(|(other, _, _)| *other == key)
}

/// What was written with percent signs.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Splits a URL, whose parameters are behind a question mark. One in the password, in front of the `@`, is none.
fn of_url(url: &str) -> Parts {
    let begin = url.find('@').unwrap_or(0);
    let Some((path, parameters)) = url[begin..].split_once('?') else {
        return Parts { rest: url.to_owned(), ..Parts::default() };
    };
    let mut encryption = Vec::new();
    let mut rest = Vec::new();
    for parameter in parameters.split('&') {
        let parts = parameter.split_once('=').map(|(key, value)| (decoded(key), decoded(value)));
        match parts.filter(|(key, _)| is_of_encryption(key)) {
            Some(parts) => encryption.push(parts),
            None => rest.push(parameter),
        }
    }
    let mark = if rest.is_empty() { "" } else { "?" };
    Parts { encryption, rest: format!("{}{path}{mark}{}", &url[..begin], rest.join("&")) }
}

/// Splits a connection string: keys and values with `=` between them, and values maybe in single quotation marks.
fn of_string(string: &str) -> Parts {
    let mut parts = Parts::default();
    let mut left = string.trim_start();
    while let Some((key, behind)) = left.split_once('=') {
        let value_at = behind.len() - behind.trim_start().len();
        let len = value_len(&behind[value_at..]);
        let value = &behind[value_at..value_at + len];
        let key = key.trim();
        if is_of_encryption(key) {
            parts.encryption.push((key.to_owned(), value.trim_matches('\'').to_owned()));
        } else {
            parts.rest.extend([key, "=", value, " "]);
        }
        left = behind[value_at + len..].trim_start();
    }
    // What is no pair is for the driver to refuse.
    parts.rest.push_str(left);
    parts
}

/// The number of bytes of the value at the beginning of `text`.
fn value_len(text: &str) -> usize {
    let is_quoted = text.starts_with('\'');
    let mut is_escaped = false;
    for (at, character) in text.char_indices().skip(usize::from(is_quoted)) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '\'' if is_quoted => return at + 1,
            _ if !is_quoted && character.is_whitespace() => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> anyhow::Result<(String, Encryption)> {
        take(address, |_| None)
    }

    #[test]
    fn what_is_said_about_encryption_is_taken_out() {
        for (address, expected, mode) in [
            (
                "postgres://u:a?sslmode=b@h/d?sslmode=allow&options=x",
                "postgres://u:a?sslmode=b@h/d?options=x",
                Mode::Prefer,
            ),
            ("postgres://h/d?sslmode=require&channel_binding=disable", "postgres://h/d", Mode::Require),
            ("postgres://h/d?sslmode=disable&sslmode=verify-full", "postgres://h/d", Mode::VerifyFull),
            (
                "host=h sslmode = 'verify-ca' password='a \\' sslmode=require' dbname=d",
                "host=h password='a \\' sslmode=require' dbname=d ",
                Mode::VerifyCa,
            ),
            ("postgres://h/d?ssl%6Dode=verify%2Dca", "postgres://h/d", Mode::VerifyCa),
            ("host=h nothing", "host=h nothing", Mode::Prefer),
            ("shop", "shop", Mode::Prefer),
        ] {
            let (rest, encryption) = of(address).unwrap();
            assert_eq!((rest.as_str(), encryption.mode), (expected, mode), "{address}");
        }
    }

    #[test]
    fn files_are_named_in_the_address_or_lie_in_the_home_directory() {
        let (_, encryption) = of("host=h sslrootcert=ca sslcert=c sslkey=k").unwrap();
        assert_eq!(encryption.authorities, Some(Authorities::File("ca".into())));
        assert_eq!(encryption.identity, Some(("c".into(), "k".into())));
        let (_, encryption) = of("postgres://h/d?sslrootcert=%2Fetc%2Fca.pem").unwrap();
        assert_eq!(encryption.authorities, Some(Authorities::File("/etc/ca.pem".into())));
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join(DIRECTORY);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("root.crt"), "").unwrap();
        let of_home = |name: &str| (name == "HOME").then(|| home.path().to_str().unwrap().to_owned());
        let (_, encryption) = take("host=h", of_home).unwrap();
        assert_eq!(encryption.authorities, Some(Authorities::File(directory.join("root.crt"))));
        assert_eq!(encryption.identity, None);
    }

    #[test]
    fn whoever_trusts_the_systems_authorities_has_names_compared() {
        let (_, encryption) = of("postgres://h/d?sslrootcert=system").unwrap();
        assert_eq!((encryption.mode, encryption.authorities), (Mode::VerifyFull, Some(Authorities::System)));
        let message = of("postgres://h/d?sslrootcert=system&sslmode=require").unwrap_err().to_string();
        assert!(message.contains("use sslmode=verify-full"), "{message}");
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for (address, said) in [
            ("postgres://h/d?channel_binding=require", "channel_binding=require asks"),
            ("postgres://h/d?sslnegotiation=direct", "use sslnegotiation=postgres"),
            ("postgres://h/d?sslcrl=file", "does not know sslcrl"),
            ("host=h sslcert=c", "the certificate in c has no key here"),
            ("host=h sslmode='always'", "sslmode=always is no mode of encryption: use disable, allow"),
        ] {
            let message = of(address).unwrap_err().to_string();
            assert!(message.contains(said), "{address}: {message}");
        }
    }

    #[test]
    fn the_environment_asks_where_the_address_says_nothing() {
        let variable = |name: &'static str| move |asked: &str| (asked == name).then(|| "require".to_owned());
        assert_eq!(take("shop", variable("PGSSLMODE")).unwrap().1.mode, Mode::Require);
        assert_eq!(take("postgres://h/d?sslmode=disable", variable("PGSSLMODE")).unwrap().1.mode, Mode::Disable);
        for name in ["PGCHANNELBINDING", "PGGSSENCMODE"] {
            let message = take("shop", variable(name)).unwrap_err().to_string();
            assert!(message.contains(&format!("{name}=require asks")), "{message}");
        }
    }
}
