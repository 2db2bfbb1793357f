//! Prints the results of the other benchmarks as one table.
//!
//! Medians with quartiles. A line whose aim is missed is marked.

mod support;

use std::fs;

use support::rows::{Aim, Figure, Row, Unit, directory};

fn main() {
    let mut files: Vec<_> = fs::read_dir(directory())
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    files.sort();
    let rows: Vec<Row> = files
        .iter()
        .flat_map(|file| {
            let bytes = fs::read(file).expect("figures can be read");
            serde_json::from_slice::<Vec<Row>>(&bytes).expect("figures of this version; run `make bench`")
        })
        .collect();
    if rows.is_empty() {
        eprintln!("nothing has been measured yet: run `make bench`");
        return;
    }
    print(&rows.iter().map(cells).collect::<Vec<_>>());
}

const HEAD: [&str; 6] = ["what", "here", "compared with", "", "ratio", "aim"];

fn cells(row: &Row) -> [String; 6] {
    let more_is_better = row.unit == Unit::PerSecond;
    let (other, figure, ratio) = match &row.other {
        Some((name, other)) => {
            (name.clone(), spread(row.unit, other), format!("{:.2}", row.ours.median / other.median))
        }
        None => Default::default(),
    };
    let ratio_now = row.other.as_ref().map(|(_, other)| row.ours.median / other.median);
    let aim = row.aim.map_or(String::new(), |aim| {
        let sign = if more_is_better { '≥' } else { '≤' };
        let (aim, figure, text) = match aim {
            Aim::Figure(aim) => (aim, Some(row.ours.median), quantity(row.unit, aim)),
            Aim::Ratio(aim) => (aim, ratio_now, format!("{aim:.2} of that")),
        };
        let is_met = figure.is_some_and(|figure| if more_is_better { figure >= aim } else { figure <= aim });
        format!("{sign} {text}{}", if is_met { "" } else { " MISSED" })
    });
    [row.what.clone(), spread(row.unit, &row.ours), other, figure, ratio, aim]
}

/// The median, followed by the quartiles.
fn spread(unit: Unit, figure: &Figure) -> String {
    let [median, lower, upper] = [figure.median, figure.lower, figure.upper].map(|value| quantity(unit, value));
    format!("{median} ({lower} – {upper})")
}

/// A quantity to three digits with its unit.
fn quantity(unit: Unit, value: f64) -> String {
    let scales: &[(f64, &str)] = match unit {
        Unit::Seconds => &[(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")],
        Unit::Bytes => &[(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")],
        Unit::PerSecond => &[(1.0, "/s")],
        Unit::Share => &[(1e-2, "%")],
        Unit::Number => &[(1.0, "")],
    };
    let (scale, name) =
        scales.iter().find(|(scale, _)| value.abs() >= *scale).or(scales.last()).expect("a unit has a scale");
    let value = value / scale;
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {name}").trim_end().to_owned()
}

/// Prints a table in Markdown, its columns aligned.
fn print(rows: &[[String; 6]]) {
    let head = HEAD.map(str::to_owned);
    let width =
        |column: usize| rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!(" {cell:width$} "));
        println!("|{}|", cells.collect::<Vec<_>>().join("|"));
    };
    line(&head);
    println!("|{}|", widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("|"));
    rows.iter().for_each(line);
}
