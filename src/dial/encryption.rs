//! What an address and the environment say about encryption. Connections of this program have none, so what asks for it
//! is refused.

use anyhow::{bail, ensure};

/// The parameters that say whether a connection is encrypted, and their variables.
const MODES: [(&str, &str); 3] =
    [("sslmode", "PGSSLMODE"), ("gssencmode", "PGGSSENCMODE"), ("channel_binding", "PGCHANNELBINDING")];

/// The values with which a connection may go unencrypted.
const OPTIONAL: [&str; 3] = ["disable", "allow", "prefer"];

/// How URLs begin.
const URLS: [&str; 2] = ["postgres://", "postgresql://"];

/// The beginning of the names of all other parameters of encryption, such as `sslrootcert`.
const PREFIX: &str = "ssl";

/// The parts of an address.
#[derive(Default)]
struct Parts {
    /// The parameters of encryption in it.
    encryption: Vec<(String, String)>,
    /// The address without them.
    rest: String,
}

impl Parts {
    fn mode(&self, name: &str) -> Option<String> {
        self.encryption.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }
}

/// An address, a URL or a connection string, without what it says about encryption.
///
/// # Errors
/// When it, or else the environment, asks for encryption.
pub(super) fn take(address: &str, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<String> {
    let parts = if URLS.iter().any(|url| address.starts_with(url)) { of_url(address) } else { of_string(address) };
    for (key, name) in MODES {
        let in_address = parts.mode(key).filter(|value| !value.is_empty());
        let Some((place, value)) = in_address.map(|value| (key, value)).or_else(|| Some((name, variable(name)?)))
        else {
            continue;
        };
        ensure!(
            OPTIONAL.contains(&value.as_str()),
            "{place}={value} asks for an encrypted connection, which this command cannot make: connect to the server's \
             unix socket, or through a tunnel, with {place}=disable"
        );
    }
    let is_disabled = parts.mode("sslmode").is_some_and(|value| value == "disable");
    let other = parts.encryption.iter().find(|(key, _)| MODES.iter().all(|(mode, _)| mode != key));
    if let Some((key, _)) = other.filter(|_| !is_disabled) {
        bail!("{key} is for encrypted connections, which this command cannot make: leave it out of the address");
    }
    Ok(parts.rest)
}

fn is_of_encryption(key: &str) -> bool {
    key.starts_with(PREFIX) || MODES.iter().any(|(mode, _)| *mode == key)
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
        match parameter.split_once('=') {
            Some((key, value)) if is_of_encryption(key) => encryption.push((key.to_owned(), value.to_owned())),
            _ => rest.push(parameter),
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

    fn without(address: &str) -> anyhow::Result<String> {
        take(address, |_| None)
    }

    #[test]
    fn what_a_connection_may_do_without_is_taken_out() {
        for (address, expected) in [
            ("postgres://u:a?sslmode=b@h/d?sslmode=allow&options=x", "postgres://u:a?sslmode=b@h/d?options=x"),
            ("postgres://h/d?sslmode=prefer&channel_binding=disable", "postgres://h/d"),
            ("postgres://h/d?sslmode=disable&sslrootcert=file", "postgres://h/d"),
            (
                "host=h sslmode = 'allow' password='a \\' sslmode=require' dbname=d",
                "host=h password='a \\' sslmode=require' dbname=d ",
            ),
            ("host=h nothing", "host=h nothing"),
            ("shop", "shop"),
        ] {
            assert_eq!(without(address).unwrap(), expected, "{address}");
        }
    }

    #[test]
    fn what_asks_for_encryption_is_refused() {
        for (address, said) in [
            ("postgres://h/d?sslmode=require", "sslmode=require asks"),
            ("postgres://h/d?sslmode=disable&sslmode=verify-full", "sslmode=verify-full asks"),
            ("postgres://h/d?channel_binding=require", "channel_binding=require asks"),
            ("postgres://h/d?sslrootcert=file", "sslrootcert is for encrypted connections"),
            ("host=h sslmode='verify-ca'", "sslmode=verify-ca asks"),
        ] {
            let message = without(address).unwrap_err().to_string();
            assert!(message.contains(said), "{address}: {message}");
        }
    }

    #[test]
    fn the_environment_asks_where_the_address_says_nothing() {
        let variable = |name: &'static str| move |asked: &str| (asked == name).then(|| "require".to_owned());
        for name in ["PGSSLMODE", "PGCHANNELBINDING", "PGGSSENCMODE"] {
            let message = take("shop", variable(name)).unwrap_err().to_string();
            assert!(message.contains(&format!("{name}=require asks")), "{message}");
        }
        assert!(take("postgres://h/d?sslmode=disable", variable("PGSSLMODE")).is_ok());
    }
}
