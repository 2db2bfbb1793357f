//! What a scrape of `--metrics` costs where there are many clusters.

#[path = "support/rows.rs"]
mod rows;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, NewCluster},
    databases::Settings,
    metrics::Endpoint,
};
use rows::{Aim, Figure, Row, Unit, leave};
use rustix::time::{ClockId, clock_gettime};
use support::cache;

/// How many clusters there are.
const CLUSTERS: usize = 100;
/// How often they are scraped.
const SCRAPES: usize = 200;
/// How much processor time a scrape may take, in seconds.
const AIM: f64 = 10e-3;

fn main() {
    // `cargo test --benches` only checks that it runs.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let (databases, _connections) = cache::administered(Settings::default());
    for number in 0..CLUSTERS {
        let name = Some(format!("cluster {number}"));
        let origin = ClusterOrigin::Template("postgres".to_owned());
        databases.create_cluster(NewCluster { name, origin, ..NewCluster::default() }).expect("a cluster");
    }
    let endpoint = Endpoint::start("127.0.0.1:0", || Ok(1)).expect("it listens");
    endpoint.watch(databases);
    let length = scrape(endpoint.address());
    let times = (0..SCRAPES).map(|_| {
        let before = processor_time();
        scrape(endpoint.address());
        processor_time() - before
    });
    let ours = Figure::of(times.collect());
    let what = format!("scrape of {CLUSTERS} clusters ({} kB), processor time, client included", length / 1000);
    leave("scrape", &[Row { what, unit: Unit::Seconds, ours, other: None, aim: Some(Aim::Figure(AIM)) }]);
}

/// Reads the metrics; the length of the response.
fn scrape(address: SocketAddr) -> usize {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("connected");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("text");
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    response.len()
}

/// What this process has used, in seconds.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // Far below 2^53.
    #[expect(clippy::cast_precision_loss)]
    let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    seconds
}
