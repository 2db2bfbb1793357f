//! Prometheus' text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>), as its client library writes
//! it. The library's own counters are not used: what is counted belongs to clusters, which come and go.

use prometheus::{
    TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

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

/// Samples that are collected, family by family.
#[derive(Default)]
pub(super) struct Exposition(Vec<MetricFamily>);

impl Exposition {
    /// Begins a family; its samples follow.
    pub(super) fn family(&mut self, family: &Family) -> Samples<'_> {
        let Family { name, kind, help } = *family;
        let mut begun = MetricFamily::default();
        begun.set_name(name.to_owned());
        begun.set_help(help.to_owned());
        begun.set_field_type(match kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        Samples { kind, samples: self.0.push_mut(begun).mut_metric() }
    }

    /// The text. Families without samples are left out.
    pub(super) fn text(mut self) -> String {
        self.0.retain(|family| !family.get_metric().is_empty());
        // It can only fail for a family without a name or without samples.
        TextEncoder::new().encode_to_string(&self.0).unwrap_or_else(|error| {
            tracing::error!(%error, "the metrics cannot be written");
            String::new()
        })
    }
}

/// The samples of one family.
pub(super) struct Samples<'a> {
    kind: Kind,
    samples: &'a mut Vec<Metric>,
}

impl Samples<'_> {
    /// Adds a sample of a counter or a gauge.
    pub(super) fn add(&mut self, labels: Labels<'_>, value: u64) -> &mut Self {
        self.add_decimal(labels, float(value))
    }

    /// Adds a sample of a counter or a gauge.
    pub(super) fn add_decimal(&mut self, labels: Labels<'_>, value: f64) -> &mut Self {
        let mut sample = labelled(labels);
        if self.kind == Kind::Counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            sample.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            sample.set_gauge(gauge);
        }
        self.samples.push(sample);
        self
    }

    /// Adds a histogram.
    pub(super) fn add_histogram(&mut self, labels: Labels<'_>, observed: &Observed) {
        let buckets = BOUNDS.iter().zip(observed.up_to).map(|(&microseconds, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(float(microseconds) / 1e6);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_sum(observed.sum.as_secs_f64());
        histogram.set_sample_count(observed.count());
        let mut sample = labelled(labels);
        sample.set_histogram(histogram);
        self.samples.push(sample);
    }
}

/// A number as Prometheus keeps it.
#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn float(number: u64) -> f64 {
    number as f64
}

/// A sample with these labels and no value yet.
fn labelled(labels: Labels<'_>) -> Metric {
    let pair = |&(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
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
        exposition.family(&family).add(&[("b", "x\"\\\ny"), ("c", "")], 7).add_decimal(&[], 1.5);
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(1));
        let family = Family { name: "d_seconds", kind: Kind::Histogram, help: "Times." };
        exposition.family(&family).add_histogram(&[("b", "y")], &histogram.observed());
        exposition.family(&Family { name: "without_samples", ..family });
        let text = exposition.text();
        assert!(!text.contains("without_samples"));
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
