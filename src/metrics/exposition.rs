//! Prometheus' text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::{Display, Write};

use crate::tally::{BOUNDS, Observed};

/// How a metric changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows.
    Counter,
    /// It grows and shrinks.
    Gauge,
    /// Durations, counted by their length.
    Histogram,
}

/// A metric: its name, its kind, and its meaning in one sentence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// The labels of a sample.
pub(super) type Labels<'a> = &'a [(&'static str, &'a str)];

/// A text that is being written, family by family.
#[derive(Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Begins a family; its samples follow. A help is without line feeds and backslashes.
    pub(super) fn family(&mut self, family: &Family) -> Samples<'_> {
        let Family { name, kind, help } = *family;
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // A text takes everything that is written to it.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Samples { text: &mut self.0, name }
    }

    /// The text.
    pub(super) fn text(self) -> String {
        self.0
    }
}

/// The samples of one family.
pub(super) struct Samples<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Samples<'_> {
    /// Adds a sample.
    pub(super) fn add(&mut self, labels: Labels<'_>, value: impl Display) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// Adds a histogram.
    pub(super) fn add_histogram(&mut self, labels: Labels<'_>, observed: &Observed) {
        let bounds = BOUNDS.iter().map(|&microseconds| seconds(microseconds)).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(observed.up_to) {
            self.line("_bucket", labels, Some(&bound), count);
        }
        self.line("_sum", labels, None, observed.sum.as_secs_f64());
        self.line("_count", labels, None, observed.count());
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<&str>, value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let mut separator = '{';
        for (name, value) in labels {
            self.text.push(separator);
            self.text.push_str(name);
            self.text.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    character => self.text.push(character),
                }
            }
            self.text.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
        // A text takes everything that is written to it.
        let _ = writeln!(self.text, " {value}");
    }
}

/// Microseconds as seconds in decimal digits.
fn seconds(microseconds: u64) -> String {
    let (whole, rest) = (microseconds / 1_000_000, microseconds % 1_000_000);
    let text = format!("{whole}.{rest:06}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tally::Histogram;

    #[test]
    fn labels_are_quoted_and_histograms_have_their_parts() {
        let mut exposition = Exposition::default();
        let family = Family { name: "a_total", kind: Kind::Counter, help: "Things." };
        exposition.family(&family).add(&[("b", "x\"\\\ny"), ("c", "")], 7).add(&[], 1.5);
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(1));
        let family = Family { name: "d_seconds", kind: Kind::Histogram, help: "Times." };
        exposition.family(&family).add_histogram(&[("b", "y")], &histogram.observed());
        let text = exposition.text();
        assert!(text.starts_with(
            "# HELP a_total Things.\n# TYPE a_total counter\na_total{b=\"x\\\"\\\\\\ny\",c=\"\"} 7\na_total 1.5\n"
        ));
        assert!(text.ends_with(
            "d_seconds_bucket{b=\"y\",le=\"10\"} 1\nd_seconds_bucket{b=\"y\",le=\"+Inf\"} 1\nd_seconds_sum{b=\"y\"} 0.001\n\
             d_seconds_count{b=\"y\"} 1\n"
        ));
        assert!(text.contains("le=\"0.0005\"} 0\n") && text.contains("le=\"0.001\"} 1\n"), "{text}");
    }
}
