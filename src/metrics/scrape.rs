//! Reads what the endpoint of a running program says, for those who watch it without Prometheus.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, bail, ensure};

use super::{PATIENCE, http};

/// Metrics at one moment.
pub struct Scrape {
    /// When they were asked for.
    pub at: Instant,
    samples: Vec<Sample>,
}

/// One value.
#[derive(Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Scrape {
    /// Asks the endpoint at `address`, HOST:PORT.
    ///
    /// # Errors
    /// When nothing answers there, or something else than a `pglite-port`.
    pub fn fetch(address: &str) -> anyhow::Result<Self> {
        let at = Instant::now();
        let (status, text) = http::fetch(address, "/metrics", PATIENCE).with_context(|| {
            format!("no metrics at http://{address}/metrics: start pglite-port with --metrics {address}, or name another HOST:PORT")
        })?;
        ensure!(status == 200, "http://{address}/metrics answers with status {status}: {}", text.trim());
        let scrape = Self::parse(at, &text).with_context(|| format!("http://{address}/metrics has no metrics"))?;
        if scrape.labels("pglite_port_info").next().is_none() {
            bail!("http://{address}/metrics has no metrics of a pglite-port");
        }
        Ok(scrape)
    }

    /// # Errors
    /// When a line is neither a sample nor a comment.
    fn parse(at: Instant, text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| Sample::parse(line).with_context(|| format!("this is no sample: {line:?}")));
        Ok(Self { at, samples: samples.collect::<anyhow::Result<_>>()? })
    }

    /// The sum of the samples of that name that have all of these labels; `None` if there are none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &Sample, (name, value): (&str, &str)| {
            sample.labels.get(name).map_or(value.is_empty(), |it| it == value)
        };
        let found = self.samples.iter().filter(|sample| sample.name == name);
        found
            .filter(|sample| labels.iter().all(|label| has(sample, *label)))
            .map(|sample| sample.value)
            .reduce(|one, other| one + other)
    }

    /// The labels of the samples of that name.
    pub fn labels(&self, name: &str) -> impl Iterator<Item = &BTreeMap<String, String>> {
        self.samples.iter().filter(move |sample| sample.name == name).map(|sample| &sample.labels)
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let end = line.find(['{', ' '])?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = BTreeMap::new();
        if let Some(mut inside) = rest.strip_prefix('{') {
            loop {
                if let Some(after) = inside.strip_prefix('}') {
                    rest = after;
                    break;
                }
                let (label, value) = inside.split_once("=\"")?;
                let (value, after) = unquote(value)?;
                labels.insert(label.to_owned(), value);
                inside = after.strip_prefix(',').unwrap_or(after);
            }
        }
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Self { name: name.to_owned(), labels, value })
    }
}

/// The value of a label, and what is behind its quotation mark.
fn unquote(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.chars());
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(match characters.next()? {
                'n' => '\n',
                other => other,
            }),
            character => value.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::exposition::{Exposition, Family, Kind},
        *,
    };

    proptest! {
        #[test]
        fn what_is_written_is_read(value in "\\PC*|[\\\\\"\n}{,= a]*", number in any::<u32>()) {
            let mut exposition = Exposition::default();
            let family = Family { name: "a", kind: Kind::Gauge, help: "Things." };
            exposition.family(&family).add(&[("b", &value), ("c", "d")], number.into()).add(&[], 1);
            let text = exposition.text();
            // A line ends at a line feed only.
            let text = text.replace('\r', "?");
            let value = value.replace('\r', "?");
            let scrape = Scrape::parse(Instant::now(), &text).unwrap();
            prop_assert_eq!(scrape.sum("a", &[("b", &value), ("c", "d")]), Some(f64::from(number)));
            prop_assert_eq!(scrape.labels("a").count(), 2);
        }

        #[test]
        fn nothing_that_is_read_panics(text in "\\PC*|([a{}=\",\\\\ 0-9\n]*)") {
            let _ = Scrape::parse(Instant::now(), &text);
        }
    }

    #[test]
    fn sums_are_over_labels() {
        let text = "# HELP a b\na{x=\"1\",y=\"1\"} 2\na{x=\"1\",y=\"2\"} 3\na{x=\"2\"} 4 1700000000\n\nb 1e3\n";
        let scrape = Scrape::parse(Instant::now(), text).unwrap();
        let sums = [scrape.sum("a", &[("x", "1")]), scrape.sum("a", &[("x", "2"), ("y", "")]), scrape.sum("b", &[])];
        assert_eq!(sums, [Some(5.0), Some(4.0), Some(1000.0)]);
        assert_eq!(scrape.sum("c", &[]), None);
        assert!(Scrape::parse(Instant::now(), "<html>").is_err());
    }
}
