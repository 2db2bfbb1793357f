//! The output of `pglite-port evidence`.

use std::io::{self, Write};

use pglite_port::instrument::Instrumented;
use serde_json::Value;

/// Prints every function with its index and evidence, then every fact with its address, one on each line. A closed
/// pipe is no error.
pub(crate) fn print(instrumented: &Instrumented) -> io::Result<()> {
    match write(&mut io::stdout().lock(), instrumented) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn write(out: &mut impl Write, instrumented: &Instrumented) -> io::Result<()> {
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
