//! An HTTP endpoint for Prometheus: `/metrics`, `/healthz` (the program runs) and `/readyz` (clients get a session).
//!
//! * `mod`: what is answered
//! * `http`: requests and responses, within limits
//! * `exposition`: Prometheus' text format
//! * `families`: all metrics, each named once
//! * `process`: those of the process
//! * `scrape`: reads them, for `top`

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use parking_lot::Mutex;

use crate::administration::Administration;
use http::{Request, Response};

mod exposition;
mod families;
mod http;
mod process;
mod scrape;

pub use scrape::Scrape;

/// How many requests are answered at once. Further connections are closed.
const REQUESTS: usize = 8;

/// How long a connection may take, from its acceptance to its end.
const PATIENCE: Duration = Duration::from_secs(5);

/// For how long the size of the cache is taken to stay the same, because counting it reads directories.
const CACHE_SIZE_AGE: Duration = Duration::from_mins(1);

/// The pause after a failure to accept a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Counts the bytes of the cache.
type CacheSize = Box<dyn Fn() -> anyhow::Result<u64> + Send + Sync>;

/// An endpoint that answers until the program ends.
pub struct Endpoint {
    watcher: Arc<Watcher>,
    address: SocketAddr,
}

/// What is watched.
struct Watcher {
    /// The clusters, when they are open.
    administration: OnceLock<Arc<dyn Administration>>,
    /// The host of the option, as a web page's request cannot name it.
    host: String,
    /// Whether only this machine's programs can connect.
    is_local: bool,
    cache_size: CacheSize,
    counted: Mutex<Option<(Instant, u64)>>,
    /// How many requests are being answered.
    requests: AtomicUsize,
}

impl Endpoint {
    /// Listens on `address`, HOST:PORT, and begins to answer. `cache_size` counts the bytes of the program's cache.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(
        address: &str,
        cache_size: impl Fn() -> anyhow::Result<u64> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| {
            format!("cannot listen on {address:?} for metrics: give --metrics HOST:PORT (port 0 for any free port)")
        })?;
        let bound = listener.local_addr()?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let watcher = Arc::new(Watcher {
            administration: OnceLock::new(),
            host: host.to_owned(),
            is_local: bound.ip().to_canonical().is_loopback(),
            cache_size: Box::new(cache_size),
            counted: Mutex::default(),
            requests: AtomicUsize::new(0),
        });
        let answering = watcher.clone();
        thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || answering.answer_all(&listener))
            .context("no thread can be started to answer requests for metrics")?;
        tracing::info!("metrics: http://{bound}/metrics");
        Ok(Self { watcher, address: bound })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The clusters are open, and watched from now on.
    pub fn watch(&self, administration: Arc<dyn Administration>) {
        // It is set once.
        let _ = self.watcher.administration.set(administration);
    }
}

impl Watcher {
    fn answer_all(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            match listener.accept() {
                Ok((stream, _)) => self.answer_on_thread(stream),
                Err(error) => {
                    tracing::debug!(%error, "a request for metrics could not be accepted");
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Answers one request, unless there are too many; then the connection is closed. Prometheus asks again.
    fn answer_on_thread(self: &Arc<Self>, stream: TcpStream) {
        if self.requests.fetch_add(1, Ordering::Relaxed) >= REQUESTS {
            self.requests.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let place = Place(self.clone());
        let work = move || {
            if let Err(error) = http::answer(stream, PATIENCE, |request| place.0.respond(request)) {
                tracing::debug!(%error, "a request for metrics could not be answered");
            }
        };
        // Without a thread the closure is dropped, and the connection and its place with it.
        if let Err(error) = thread::Builder::new().name("metrics".to_owned()).spawn(work) {
            tracing::debug!(%error, "no thread to answer a request for metrics");
        }
    }

    fn respond(&self, request: &Request) -> Response {
        if self.is_local && !self.is_named_by(&request.host) {
            return Response::text(421, "this address answers for localhost and its own addresses only");
        }
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            return Response::text(405, "use GET");
        }
        match request.path.as_str() {
            "/metrics" => Response::metrics(self.metrics()),
            "/healthz" => Response::text(200, "the program runs"),
            "/readyz" => match self.readiness() {
                Ok(()) => Response::text(200, "clients get a session"),
                Err(reason) => Response::text(503, &reason),
            },
            "/" => Response::text(200, "/metrics, /healthz and /readyz are here"),
            _ => Response::text(404, "/metrics, /healthz and /readyz are here"),
        }
    }

    /// Whether a request with that `Host` is meant for this endpoint. The name of a web page's own site, which may lead
    /// to this machine (DNS rebinding), is neither an address nor the host of the option.
    fn is_named_by(&self, host: &str) -> bool {
        let without_port = match host.strip_prefix('[') {
            Some(v6) => v6.split_once(']').map_or(host, |(address, _)| address),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        without_port.parse::<IpAddr>().is_ok()
            || without_port.eq_ignore_ascii_case("localhost")
            || without_port.eq_ignore_ascii_case(&self.host)
    }

    fn readiness(&self) -> Result<(), String> {
        let administration = self.administration.get().ok_or_else(|| "the program starts".to_owned())?;
        administration.readiness()
    }

    fn metrics(&self) -> String {
        let watched = self.administration.get().map(|administration| administration.watched());
        families::exposition(watched.as_ref(), self.readiness().is_ok(), self.cache_bytes())
    }

    fn cache_bytes(&self) -> Option<u64> {
        let mut counted = self.counted.lock();
        if counted.is_none_or(|(at, _)| at.elapsed() > CACHE_SIZE_AGE) {
            match (self.cache_size)() {
                Ok(bytes) => *counted = Some((Instant::now(), bytes)),
                Err(error) => tracing::debug!("the size of the cache is not known: {error:#}"),
            }
        }
        counted.map(|(_, bytes)| bytes)
    }
}

/// One of the requests that are answered at once.
struct Place(Arc<Watcher>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_page_cannot_name_the_endpoint() {
        let watcher = Watcher {
            administration: OnceLock::new(),
            host: "db.internal".to_owned(),
            is_local: true,
            cache_size: Box::new(|| Ok(1)),
            counted: Mutex::default(),
            requests: AtomicUsize::new(0),
        };
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:9187", "[::1]:9187", "[::1]", "db.internal:9187"] {
            assert!(watcher.is_named_by(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:9187", "localhost.evil.example", "[evil]:1", "127.0.0.1.evil"] {
            assert!(!watcher.is_named_by(host), "{host}");
        }
    }
}
