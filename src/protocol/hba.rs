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
        // As `tokenize_auth_file` in `src/backend/libpq/hba.c`: a backslash at its end continues a line, unless nothing
        // but the backslash of the line before it is left of it.
        let (mut written, mut rule, mut continued_at) = (first.to_owned(), without_end(first).to_owned(), 0);
        while rule.len() > continued_at && rule.ends_with('\\') {
            rule.pop();
            continued_at = rule.len();
            let Some(next) = lines.next() else { break };
            written.push_str(next);
            rule.push_str(next);
            rule.truncate(without_end(&rule).len());
        }
        let count = written.matches('\n').count();
        match translate_rule(&rule).map_err(|problem| RuleError { line: number, problem })? {
            Some(rule) => {
                let end = &written[without_end(&written).len()..];
                translated.push_str(&rule);
                translated.push_str(end);
                // PostgreSQL's messages have the numbers of lines.
                translated.push_str(&"\n".repeat(count - end.matches('\n').count()));
            }
            None => translated.push_str(&written),
        }
        number += count;
    }
    Ok(translated)
}

/// A line without its end (`pg_strip_crlf` in `src/common/string.c`).
fn without_end(line: &str) -> &str {
    line.trim_end_matches(['\n', '\r'])
}

/// The translated rule, if there is something to translate in it.
fn translate_rule(rule: &str) -> Result<Option<String>, String> {
    let fields = fields(rule);
    let first = |at: usize| fields.get(at).and_then(|field| field.first());
    let text = |at: usize| first(at).map(|token| token.text.as_str());
    if text(0) != Some("hostssl") {
        return Ok(None);
    }
    // An address without the length of its prefix is followed by a mask.
    let method = if text(3).is_some_and(|address| address.parse::<IpAddr>().is_ok()) { 5 } else { 4 };
    let is_cert = text(method) == Some("cert");
    let (mut edits, mut clientcert) = (Vec::new(), None);
    for option in fields.iter().skip(method + 1).flatten() {
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
    if let (true, Some(method)) = (is_cert, first(method)) {
        edits.insert(0, (method.place.clone(), "trust"));
    }
    let mut translated = String::new();
    let mut from = 0;
    for (place, with) in edits {
        translated.push_str(&rule[from..place.start]);
        translated.push_str(with);
        from = place.end;
    }
    translated.push_str(&rule[from..]);
    translated.push_str(&requirement.comment());
    Ok(Some(translated))
}

/// A value in a field of a rule, without quotes.
struct Token {
    text: String,
    place: Range<usize>,
}

/// The fields of a rule, each a list of values (`next_field_expand` in `src/backend/libpq/hba.c`). A comma behind a value
/// says that the next one is of the same field.
fn fields(rule: &str) -> Vec<Vec<Token>> {
    let mut fields: Vec<Vec<Token>> = Vec::new();
    let (mut at, mut same_field) = (0, false);
    while let Some((token, end)) = next_token(rule, at) {
        match fields.last_mut() {
            Some(field) if same_field => field.push(token),
            _ => fields.push(vec![token]),
        }
        same_field = rule[end..].starts_with(',');
        at = end;
    }
    fields
}

/// The value that begins at `from` or behind it, and where it ends, as `next_token` in the same file reads it: values are
/// separated by blanks and commas outside of quotes, and a comment ends the rule. Of two quotes, one is meant.
fn next_token(rule: &str, from: usize) -> Option<(Token, usize)> {
    let is_blank = |character: char| matches!(character, ' ' | '\t' | '\r');
    let start = from + rule[from..].find(|character| !is_blank(character) && character != ',')?;
    let (mut text, mut end) = (String::new(), rule.len());
    let (mut in_quotes, mut after_quote, mut is_quoted) = (false, false, false);
    for (at, character) in rule[start..].char_indices() {
        if !in_quotes && (is_blank(character) || character == '#' || character == ',') {
            end = start + at;
            break;
        }
        let is_quote = character == '"';
        if !is_quote || after_quote {
            text.push(character);
        }
        after_quote = in_quotes && is_quote && !after_quote;
        in_quotes ^= is_quote;
        is_quoted |= is_quote;
    }
    (is_quoted || !text.is_empty()).then_some((Token { text, place: start..end }, end))
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
        for (rules, expected) in [
            (
                "hostssl all \\\n all all cert\nlocal all all trust\n",
                "hostssl all  all all trust # pglite-port: clientcert=verify-full\n\nlocal all all trust\n",
            ),
            // The line behind the last backslash is empty and ends the rule.
            (
                "hostssl all all all cert \\\n\nhost all all all trust\n",
                "hostssl all all all trust  # pglite-port: clientcert=verify-full\n\nhost all all all trust\n",
            ),
            // What is cut by a backslash is one word.
            (
                "hostssl all all all scram-sha-256 clientce\\\r\nrt=verify-ca\r\n",
                "hostssl all all all scram-sha-256  # pglite-port: clientcert=verify-ca\r\n\n",
            ),
            ("hostssl all all all ce\\\nrt\\", "hostssl all all all trust # pglite-port: clientcert=verify-full\n"),
        ] {
            assert_eq!(translate(rules).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn each_value_of_a_list_is_an_option() {
        for (rule, expected) in [
            ("hostssl all all all md5 a=b, clientcert=verify-ca", "hostssl all all all md5 a=b, "),
            ("hostssl all all all md5 clientcert=verify-ca,a=b", "hostssl all all all md5 ,a=b"),
            (",hostssl a , b all \"md5\" \"clientcert=\"verify-ca", ",hostssl a , b all \"md5\" "),
        ] {
            let expected = format!("{expected} # pglite-port: clientcert=verify-ca");
            assert_eq!(translate(rule).as_deref(), Ok(&expected[..]));
        }
        // Two quotes in quotes are one that is meant.
        assert!(translate("hostssl all all all md5 \"clientcert=\"\"verify-ca\"\"\"").is_err());
    }
}
