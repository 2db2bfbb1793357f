//! The table that `pglite-port templates` prints.

use std::{
    io::{self, Write},
    time::SystemTime,
};

use jiff::{Timestamp, tz::TimeZone};
use pglite_port::template::Summary;

/// Prints one line for each template, under a line of headings; a reader that has seen enough is no error.
pub(crate) fn print(templates: &[Summary]) -> io::Result<()> {
    let rows: Vec<[String; 5]> = templates.iter().map(row).collect();
    match write(&mut io::stdout().lock(), &rows) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn row(template: &Summary) -> [String; 5] {
    let source = if template.has_recipe { "recipe" } else { "frozen" };
    [template.name.clone(), template.database.clone(), size(template.size), time(template.made), source.to_owned()]
}

fn write(out: &mut impl Write, rows: &[[String; 5]]) -> io::Result<()> {
    let headings = ["NAME", "DATABASE", "SIZE", "MADE", "SOURCE"].map(str::to_owned);
    let all: Vec<&[String; 5]> = std::iter::once(&headings).chain(rows).collect();
    let widths: Vec<usize> = (0..5).map(|i| all.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    for row in all {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn size(bytes: u64) -> String {
    // Tenths of a megabyte, rounded.
    let tenths = (bytes + 50_000) / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

/// In universal time, as everything in a cluster is.
fn time(time: SystemTime) -> String {
    let Ok(timestamp) = Timestamp::try_from(time) else { return "?".to_owned() };
    timestamp.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = ["ä", "database", "1.0 MB", "now", "frozen"].map(str::to_owned);
        let mut out = Vec::new();
        write(&mut out, &[row]).unwrap();
        let expected = "NAME  DATABASE  SIZE    MADE  SOURCE\nä     database  1.0 MB  now   frozen\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn sizes_are_megabytes_and_times_are_universal() {
        assert_eq!([0, 49_999, 50_000, 12_345_678].map(size), ["0.0 MB", "0.0 MB", "0.1 MB", "12.3 MB"]);
        assert_eq!(time(SystemTime::UNIX_EPOCH), "1970-01-01 00:00:00 UTC");
    }
}
