//! Characters in log lines that clients have chosen, in names or by SQL: none of them ends a line, begins one that
//! looks like another, or is a command for a terminal.

use std::{borrow::Cow, fmt};

use tracing_subscriber::{
    field::MakeExt,
    fmt::{FormatFields, format},
};

/// The text with its control characters as `\x1b`, and those that change the order of others or end lines elsewhere as
/// `\u{202e}`. Line feeds and tabs, with which reports are written, stay.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_escaped) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match u32::from(character) {
            code if !is_escaped(character) => escaped.extend(char::from_u32(code)),
            code if code < 0x100 => escaped.extend(format!("\\x{code:02x}").chars()),
            code => escaped.extend(format!("\\u{{{code:x}}}").chars()),
        }
    }
    escaped.into()
}

/// The text as one entry of the log: as [`escape`], and further lines begin with a tab or a space, as no entry does.
pub(crate) fn one_entry(text: &str) -> Cow<'_, str> {
    let escaped = escape(text);
    if !escaped.contains('\n') {
        return escaped;
    }
    let mut lines = escaped.split('\n');
    let mut entry = lines.next().unwrap_or_default().to_owned();
    for line in lines {
        entry.push_str(if line.starts_with(['\t', ' ']) { "\n" } else { "\n\t" });
        entry.push_str(line);
    }
    entry.into()
}

fn is_escaped(character: char) -> bool {
    let is_control = character.is_control() && character != '\n' && character != '\t';
    // Separators of lines and paragraphs, and what changes the direction of writing (Unicode, UAX #9).
    is_control || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// Writes the fields of events and spans of `tracing`, each escaped, and with a tab at the beginning of further lines.
#[must_use]
pub fn escaped_fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    format::debug_fn(|writer, field, value| match field.name() {
        "message" => write_entry(writer, "", value),
        // Where a record of the crate `log` comes from, which the default format leaves out as well.
        name if name.starts_with("log.") => Ok(()),
        name => write_entry(writer, &format!("{name}="), value),
    })
    .delimited(" ")
}

fn write_entry(writer: &mut format::Writer<'_>, name: &str, value: &dyn fmt::Debug) -> fmt::Result {
    write!(writer, "{name}{}", one_entry(&format!("{value:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_or_a_reader_of_lines_could_take_for_something_else_is_escaped() {
        assert_eq!(escape("a\x1b[31m\r\u{7f}\u{9b}\u{2028}\u{202e}\0"), r"a\x1b[31m\x0d\x7f\x9b\u{2028}\u{202e}\x00");
        assert_eq!(escape("Grüße\tan\nalle 🙂"), "Grüße\tan\nalle 🙂");
        assert_eq!(escape(&escape("\x1b")), "\\x1b", "once is enough");
    }

    #[test]
    fn further_lines_begin_with_a_tab_or_a_space() {
        assert_eq!(one_entry("one\n\ttwo\nthree\r\n"), "one\n\ttwo\n\tthree\\x0d\n\t");
        assert_eq!(one_entry(&one_entry("one\ntwo")), "one\n\ttwo");
        assert_eq!(one_entry("run:\n  alter table t"), "run:\n  alter table t");
    }
}
