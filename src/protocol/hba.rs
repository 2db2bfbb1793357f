//! Rules for the certificates of clients in `pg_hba.conf`, which PGlite cannot follow, because it has no TLS: the method
//! `cert`, and the option `clientcert`. Does no I/O.
//!
//! Such a rule is translated into one that PGlite knows, with a comment that says what is left to the host. PostgreSQL
//! keeps the line of the rule that has let a client in, comment included (`rawline` of `struct HbaLine` in
//! `src/include/libpq/hba.h`), and the host does what the comment says before the session begins. All other lines stay
//! as they are, so PostgreSQL parses and refuses them itself.

use std::{net::IpAddr, ops::Range};

/// What the comment begins with.
const MARK: &str = "# pglite-port: clientcert=";
/// What a rule requires of a client's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requirement {
    /// One that an authority has signed (`verify-ca`).
    Signed,
    /// One whose common name is that of the role (`verify-full`).
    Named,
}

/// Why a rule is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub(crate) struct RuleError {
    line: usize,
    problem: String,
}

impl Requirement {
    /// The requirement in the line of a translated rule.
    pub(crate) fn of(line: &str) -> Option<Self> {
        let (_, requirement) = line.rsplit_once(MARK)?;
        Some(if requirement.trim_end() == "verify-ca" { Self::Signed } else { Self::Named })
    }

    /// The comment for it.
    fn comment(self) -> String {
        let value = match self {
            Self::Signed => "verify-ca",
            Self::Named => "verify-full",
        };
        format!(" {MARK}{value}")
    }
}

/// The rules in `text` with those for certificates translated.
///
/// # Errors
/// When one of them is not possible.
pub(crate) fn translate(text: &str) -> Result<String, RuleError> {
    let mut translated = String::with_capacity(text.len());
    let mut number = 1;
    let mut lines = text.split_inclusive('\n');
    while let Some(first) = lines.next() {
        // A backslash at its end continues a line.
        let mut line = first.to_owned();
        while line.trim_end_matches(['\n', '\r']).ends_with('\\') {
            let Some(next) = lines.next() else { break };
            line.push_str(next);
        }
        let refused = |problem| RuleError { line: number, problem };
        translated.push_str(&translate_line(&line).map_err(refused)?.unwrap_or_else(|| line.clone()));
        number += line.matches('\n').count();
    }
    Ok(translated)
}

/// The translated line, if there is something to translate in it.
fn translate_line(line: &str) -> Result<Option<String>, String> {
    let fields = fields(line);
    let text = |at: usize| fields.get(at).map(|field| field.text.as_str());
    if text(0) != Some("hostssl") {
        return Ok(None);
    }
    // An address without the length of its prefix is followed by a mask.
    let method = if text(3).is_some_and(|address| address.parse::<IpAddr>().is_ok()) { 5 } else { 4 };
    let is_cert = text(method) == Some("cert");
    let (mut edits, mut clientcert) = (Vec::new(), None);
    for option in fields.iter().skip(method + 1) {
        match option.text.split_once('=') {
            Some(("clientcert", value)) => clientcert = Some(value.to_owned()),
            Some(("map", map)) if is_cert => {
                return Err(format!("map={map} is not supported: PGlite does not read pg_ident.conf"));
            }
            Some(("clientname", "CN")) => {}
            Some(("clientname", value)) => {
                return Err(format!(
                    "clientname={value} is not supported: certificates are known by their common name"
                ));
            }
            _ => continue,
        }
        edits.push((option.place.clone(), ""));
    }
    if !is_cert && clientcert.is_none() {
        return Ok(None);
    }
    let requirement = match clientcert.as_deref() {
        Some("verify-full") | None => Requirement::Named,
        Some("verify-ca") if !is_cert => Requirement::Signed,
        Some("verify-ca") => {
            return Err("clientcert only accepts \"verify-full\" when using \"cert\" authentication".into());
        }
        Some(other) => return Err(format!("invalid value for clientcert: \"{other}\"")),
    };
    if let (true, Some(method)) = (is_cert, fields.get(method)) {
        edits.insert(0, (method.place.clone(), "trust"));
    }
    let end = line.trim_end_matches(['\n', '\r']).len();
    edits.push((end..end, ""));
    let mut translated = String::new();
    let mut from = 0;
    for (place, with) in edits {
        translated.push_str(&line[from..place.start]);
        translated.push_str(with);
        from = place.end;
    }
    translated.push_str(&requirement.comment());
    translated.push_str(&line[end..]);
    Ok(Some(translated))
}

/// A field of a line, without quotes; of a list, its values one after the other.
struct Field {
    text: String,
    place: Range<usize>,
}

/// The fields of a line, as `next_token` and `next_field_expand` in `src/backend/libpq/hba.c` split it: at blanks, except
/// in quotes and after a comma, up to a comment.
fn fields(line: &str) -> Vec<Field> {
    let mut fields: Vec<Field> = Vec::new();
    let (mut in_quotes, mut in_field, mut after_comma) = (false, false, false);
    for (at, character) in line.char_indices() {
        let continues = character == '\\' && ends_line(&line[at + 1..]);
        let is_blank = continues || (matches!(character, ' ' | '\t' | '\r' | '\n') && !in_quotes);
        if character == '#' && !in_quotes {
            break;
        }
        if is_blank {
            in_field = false;
            continue;
        }
        if !in_field && !after_comma {
            fields.push(Field { text: String::new(), place: at..at });
        }
        in_field = true;
        after_comma = character == ',' && !in_quotes;
        if let Some(field) = fields.last_mut() {
            field.place.end = at + character.len_utf8();
            match character {
                '"' => in_quotes = !in_quotes,
                character => field.text.push(character),
            }
        }
    }
    fields
}

fn ends_line(rest: &str) -> bool {
    rest.starts_with('\n') || rest.starts_with("\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_certificates_are_translated_and_all_others_stay_as_they_are() {
        for (rule, expected) in [
            ("hostssl all all all cert", "hostssl all all all trust # pglite-port: clientcert=verify-full"),
            (
                "hostssl all all 10.0.0.0 255.0.0.0 \"cert\" clientcert=verify-full\n",
                "hostssl all all 10.0.0.0 255.0.0.0 trust  # pglite-port: clientcert=verify-full\n",
            ),
            (
                "hostssl a,\"b c\", d all ::1/128 scram-sha-256 clientcert=verify-ca # why\r\n",
                "hostssl a,\"b c\", d all ::1/128 scram-sha-256  # why # pglite-port: clientcert=verify-ca\r\n",
            ),
            (
                "hostssl all all all md5 \"clientcert=verify-full\" clientname=CN",
                "hostssl all all all md5   # pglite-port: clientcert=verify-full",
            ),
        ] {
            assert_eq!(translate(rule).as_deref(), Ok(expected));
        }
        for rule in [
            "",
            "# hostssl all all all cert\n",
            "hostssl all all all scram-sha-256\n",
            "host all all all cert\n",
            "hostssl cert cert cert trust\n",
            "hostssl all all 10.0.0.0 cert\n",
            "include \"hostssl\"\n\nlocal all all trust",
        ] {
            assert_eq!(translate(rule).as_deref(), Ok(rule), "{rule}");
        }
    }

    #[test]
    fn a_requirement_is_read_as_it_was_written() {
        for requirement in [Requirement::Signed, Requirement::Named] {
            let line = format!("hostssl all all all trust{}", requirement.comment());
            assert_eq!(Requirement::of(&line), Some(requirement));
        }
        assert_eq!(Requirement::of("hostssl all all all trust # clientcert=verify-full"), None);
    }

    #[test]
    fn a_rule_that_is_not_possible_is_refused_with_its_line() {
        for (rules, line) in [
            ("local all all trust\nhostssl all all all cert clientcert=verify-ca\n", 2),
            ("hostssl all \\\n all all scram-sha-256\nhostssl all all all cert clientname=DN", 3),
            ("hostssl all all all md5 clientcert=1", 1),
            ("\nhostssl all all all cert map=people", 2),
        ] {
            assert_eq!(translate(rules).map_err(|error| error.line), Err(line), "{rules}");
        }
    }

    #[test]
    fn a_rule_in_several_lines_is_one() {
        let translated = translate("hostssl all \\\n all all cert\nlocal all all trust\n").expect("rules");
        assert!(translated.starts_with("hostssl all \\\n all all trust # pglite-port:"), "{translated}");
    }
}
