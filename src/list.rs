//! The output of the commands `templates`, `cache` and `evidence`, and what a backup had in it.

use std::{
    io::{self, Write},
    time::SystemTime,
};

use jiff::{Timestamp, tz::TimeZone};
use pglite_port::{backup, instrument::Instrumented, pruning::Entry, template::Summary};
use serde_json::Value;

/// Prints one line for each template, after a line of headings. A closed pipe is no error.
pub(crate) fn print_templates(templates: &[Summary]) -> io::Result<()> {
    print(["NAME", "DATABASE", "SIZE", "MADE", "SOURCE"], templates.iter().map(template_row))
}

/// As [`print_templates`], for everything in the cache.
pub(crate) fn print_entries(entries: &[Entry]) -> io::Result<()> {
    print(["KIND", "NAME", "SIZE", "USED"], entries.iter().map(entry_row))
}

fn print<const N: usize>(headings: [&str; N], rows: impl Iterator<Item = [String; N]>) -> io::Result<()> {
    until_enough(write(&mut io::stdout().lock(), headings, rows))
}

/// A closed pipe is no error.
fn until_enough(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn template_row(template: &Summary) -> [String; 5] {
    let source = if template.has_recipe { "recipe" } else { "frozen" };
    [template.name.clone(), template.database.clone(), size(template.size), time(template.made), source.to_owned()]
}

fn entry_row(entry: &Entry) -> [String; 4] {
    [entry.kind.as_str().to_owned(), entry.name.clone(), size(entry.size), days_ago(entry.used)]
}

fn write<const N: usize>(
    out: &mut impl Write,
    headings: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> io::Result<()> {
    let all: Vec<[String; N]> = std::iter::once(headings.map(str::to_owned)).chain(rows).collect();
    let widths: Vec<usize> = (0..N).map(|i| all.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    for row in all {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// What a backup has in it.
pub(crate) fn backup(summary: backup::Summary) -> String {
    let backup::Summary { files, bytes, pages } = summary;
    format!("{files} files, {}, {pages} pages with a right checksum", size(bytes))
}

pub(crate) fn size(bytes: u64) -> String {
    // Tenths of a megabyte, rounded.
    let tenths = (bytes + 50_000) / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

/// Times of use are known to the day.
fn days_ago(time: SystemTime) -> String {
    match time.elapsed().unwrap_or_default().as_secs() / (24 * 60 * 60) {
        0 => "today".to_owned(),
        1 => "1 day ago".to_owned(),
        days => format!("{days} days ago"),
    }
}

/// In UTC, as all times in a cluster.
fn time(time: SystemTime) -> String {
    let Ok(timestamp) = Timestamp::try_from(time) else { return "?".to_owned() };
    timestamp.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Prints every function with its index and evidence, then every fact with its address, one on each line. A closed
/// pipe is no error.
pub(crate) fn print_evidence(instrumented: &Instrumented) -> io::Result<()> {
    until_enough(write_evidence(&mut io::stdout().lock(), instrumented))
}

fn write_evidence(out: &mut impl Write, instrumented: &Instrumented) -> io::Result<()> {
    for finding in &instrumented.findings {
        writeln!(out, "function {} {}: {}", finding.name, finding.index, finding.evidence)?;
    }
    write_value(out, "fact", &serde_json::to_value(&instrumented.facts)?)
}

/// Writes every number and text in `value` after its path.
fn write_value(out: &mut impl Write, path: &str, value: &Value) -> io::Result<()> {
    match value {
        Value::Object(fields) => {
            fields.iter().try_for_each(|(name, value)| write_value(out, &format!("{path} {name}"), value))
        }
        Value::Array(items) => (0..)
            .zip(items)
            .try_for_each(|(index, value): (usize, _)| write_value(out, &format!("{path} {index}"), value)),
        value => writeln!(out, "{path}: {value}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = ["ä", "database", "1.0 MB", "now", "frozen"].map(str::to_owned);
        let mut out = Vec::new();
        write(&mut out, ["NAME", "DATABASE", "SIZE", "MADE", "SOURCE"], [row].into_iter()).unwrap();
        let expected = "NAME  DATABASE  SIZE    MADE  SOURCE\nä     database  1.0 MB  now   frozen\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn sizes_are_megabytes_and_times_are_universal() {
        assert_eq!([0, 49_999, 50_000, 12_345_678].map(size), ["0.0 MB", "0.0 MB", "0.1 MB", "12.3 MB"]);
        let past = |days| days_ago(SystemTime::now() - Duration::from_hours(24 * days));
        assert_eq!([0_u64, 1, 40].map(past), ["today", "1 day ago", "40 days ago"]);
        assert_eq!(time(SystemTime::UNIX_EPOCH), "1970-01-01 00:00:00 UTC");
    }
}
