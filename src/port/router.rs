//! Passes each frame to its connection. `requests` has the frames with requests.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use parking_lot::Mutex;

use crate::{
    administration::Administration,
    client::{ClientCertificate, Endpoints},
    connection::{Connections, Opening, no_thread},
    log::LogSink,
    port::{
        frame::{Frame, Kind, Options},
        outbox::Outbox,
        relay::{Certificates, Relay, close_options},
    },
    protocol::{
        end_point,
        error_response::{ErrorResponse, sqlstate},
    },
    quota::Limits,
    session::{Control, Mode, cancel::Interrupt},
};

mod requests;

use requests::limits;

/// How many ids of closed connections are remembered. Frames for them were sent before the parent knew of the close,
/// so they are ignored.
const REMEMBERED: usize = 1024;

/// Has the connections that the parent has opened.
pub(crate) struct Router {
    connections: Arc<Connections>,
    administration: Arc<dyn Administration>,
    outbox: Arc<Outbox>,
    mode: Mode,
    /// Called for the verb `shutdown`.
    on_shut_down: Box<dyn Fn() + Send + Sync>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: HashMap<u32, Entry>,
    /// The ids that were closed last, the oldest first.
    closed: VecDeque<u32>,
}

#[derive(Clone)]
struct Entry {
    relay: Relay,
    control: Control,
}

/// The content of an open frame.
struct Wanted {
    mode: Mode,
    cluster: Option<String>,
    template: Option<String>,
    limits: Limits,
    is_trusted: bool,
    endpoints: Endpoints,
    certificates: Certificates,
}

impl Router {
    /// A router without connections. `mode` is the mode of connections that do not choose one.
    pub(crate) fn new(
        connections: Arc<Connections>,
        administration: Arc<dyn Administration>,
        outbox: Arc<Outbox>,
        mode: Mode,
        on_shut_down: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            connections,
            administration,
            outbox,
            mode,
            on_shut_down: Box::new(on_shut_down),
            table: Mutex::default(),
        }
    }

    /// Handles a frame from the parent. Waits if the parent does not read the answers to its frames.
    pub(crate) fn accept(self: &Arc<Self>, frame: Frame<'_>) {
        match frame.kind {
            Kind::Open => self.open(frame.id, frame.payload),
            Kind::Request => self.request(frame.id, frame.payload),
            Kind::Data | Kind::Window | Kind::Close => self.pass_on(frame),
            // The port refuses these before they get here.
            Kind::Hello | Kind::Reply | Kind::Log => {}
        }
    }

    /// Ends every connection, because the parent is gone.
    pub(crate) fn parent_gone(&self) {
        let entries: Vec<Entry> = self.table.lock().open.values().cloned().collect();
        for entry in entries {
            entry.relay.client_gone();
            entry.control.interrupt(Interrupt::ClientGone);
        }
    }

    fn open(self: &Arc<Self>, id: u32, payload: &[u8]) {
        self.outbox.wait_for_room();
        if id == 0 {
            return self.refuse(id, &violation("connection id 0 is the program itself: choose another"));
        }
        if self.table.lock().open.contains_key(&id) {
            return self.close_for_violation(id, format!("connection {id} was opened a second time"));
        }
        if let Err(report) = self.parse_opening(payload).and_then(|wanted| self.start(id, wanted)) {
            self.refuse(id, &report);
        }
    }

    /// Reads the options of an open frame.
    fn parse_opening(&self, payload: &[u8]) -> Result<Wanted, ErrorResponse> {
        let options = Options::parse(payload).map_err(|error| violation(error.to_string()))?;
        let mode = match options.get("mode") {
            Some(text) => text.parse().map_err(|error| invalid(format!("{error}")))?,
            None => self.mode,
        };
        let cluster = options.get("cluster").map(str::to_owned);
        let template = options.get("template").map(str::to_owned);
        if template.is_some() && cluster.is_some() {
            return Err(invalid("a template is for connections without a cluster; leave one of them out".to_owned()));
        }
        if template.is_some() && mode == Mode::Shared {
            return Err(invalid("a template is for mode isolated; open the connection with that".to_owned()));
        }
        let limits = limits(&options)?;
        if limits != Limits::default() && (cluster.is_some() || mode == Mode::Shared) {
            return Err(invalid(
                "limits are for connections in mode isolated; a cluster gets them when it is made".to_owned(),
            ));
        }
        let is_encrypted = flag(&options, "encrypted")?;
        let endpoints = Endpoints::new(endpoint(&options, "peer")?, endpoint(&options, "local")?);
        let endpoints = Endpoints { is_encrypted, ..endpoints };
        let client = options
            .get("certificate")
            .map(|name| ClientCertificate { common_name: Some(name.to_owned()).filter(|name| !name.is_empty()) });
        let certificates = Certificates { client, server_digest: server_digest(&options, is_encrypted)? };
        let is_trusted = flag(&options, "trusted")?;
        Ok(Wanted { mode, cluster, template, limits, is_trusted, endpoints, certificates })
    }

    fn start(self: &Arc<Self>, id: u32, wanted: Wanted) -> Result<(), ErrorResponse> {
        let Wanted { mode, cluster, template, limits, is_trusted, endpoints, certificates } = wanted;
        let opening = Opening { id, mode, cluster, template, limits, is_trusted, log: self.log().of_connection(id) };
        let router = self.clone();
        // Locked until the entry is inserted, so that a connection that ends at once can remove it.
        let mut table = self.table.lock();
        let relay = Relay::new(id, self.outbox.clone(), endpoints, certificates);
        let control = self
            .connections
            .start(relay.clone(), opening, move |relay, report| {
                router.ended(id, &relay, &report);
            })
            .map_err(|error| no_thread(&error))?;
        table.closed.retain(|closed| *closed != id);
        table.open.insert(id, Entry { relay, control });
        Ok(())
    }

    /// Where the output of guests goes: to the parent.
    fn log(&self) -> LogSink {
        let outbox = self.outbox.clone();
        LogSink::new(move |id, level, target, text| outbox.push_log(id, level, target, text))
    }

    /// Called when a connection's thread ends.
    fn ended(&self, id: u32, relay: &Relay, report: &ErrorResponse) {
        {
            let mut table = self.table.lock();
            // Meanwhile the id may have been closed, and opened again for another connection.
            if table.open.get(&id).is_some_and(|entry| entry.relay.is(relay)) {
                table.close(id);
            }
        }
        relay.close(report);
    }

    fn pass_on(&self, frame: Frame<'_>) {
        let entry = {
            let table = self.table.lock();
            match table.open.get(&frame.id) {
                Some(entry) => entry.clone(),
                None if table.closed.contains(&frame.id) => return,
                None => {
                    drop(table);
                    self.outbox.wait_for_room();
                    let message = format!("connection {} does not exist", frame.id);
                    return self.refuse(frame.id, &ErrorResponse::fatal(sqlstate::CONNECTION_DOES_NOT_EXIST, message));
                }
            }
        };
        let Entry { relay, control, .. } = entry;
        let result = match (frame.kind, <[u8; 4]>::try_from(frame.payload)) {
            (Kind::Data, _) => relay.data(frame.payload).map_err(|error| error.to_string()),
            (Kind::Window, Ok(credit)) => relay.window(u32::from_be_bytes(credit)).map_err(|error| error.to_string()),
            (Kind::Window, Err(_)) => Err(format!("a window frame has 4 bytes, not {}", frame.payload.len())),
            _ => {
                relay.client_gone();
                control.interrupt(Interrupt::ClientGone);
                Ok(())
            }
        };
        if let Err(message) = result {
            self.close_for_violation(frame.id, message);
        }
    }

    /// Closes a connection after a violation of the protocol by the parent.
    fn close_for_violation(&self, id: u32, message: String) {
        let entry = self.table.lock().close(id);
        if let Some(Entry { relay, control, .. }) = entry {
            relay.close(&violation(message));
            control.interrupt(Interrupt::Terminate);
        }
    }

    /// Answers a frame for a connection that does not exist.
    fn refuse(&self, id: u32, report: &ErrorResponse) {
        self.outbox.push_options(Kind::Close, id, &close_options(report));
    }
}

impl Table {
    /// Removes a connection and remembers its id.
    fn close(&mut self, id: u32) -> Option<Entry> {
        let entry = self.open.remove(&id)?;
        if self.closed.len() == REMEMBERED {
            self.closed.pop_front();
        }
        self.closed.push_back(id);
        Some(entry)
    }
}

/// The option `key`, which is `true` or `false`, or is missing, which is false.
fn flag(options: &Options, key: &str) -> Result<bool, ErrorResponse> {
    match options.get(key) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(invalid(format!("invalid value for option {key}: \"{other}\""))),
    }
}

/// The digest of the certificate in the option `server_certificate`, which the client has been shown; `None` if there
/// is none that a password can be bound to.
fn server_digest(options: &Options, is_encrypted: bool) -> Result<Option<Arc<str>>, ErrorResponse> {
    let Some(text) = options.get("server_certificate") else {
        return Ok(None);
    };
    if !is_encrypted {
        return Err(invalid(
            "server_certificate is for encrypted connections; open the connection with encrypted = true".to_owned(),
        ));
    }
    let wrong = |error: &dyn fmt::Display| {
        invalid(format!("server_certificate has to be a certificate (DER) in base64: {error}"))
    };
    let certificate = BASE64_STANDARD.decode(text).map_err(|error| wrong(&error))?;
    let digest = end_point::digest(&certificate).map_err(|error| wrong(&error))?;
    Ok(digest.map(Arc::from))
}

/// The address in the options `peer_address` and `peer_port`, or in those of another `end`; none if both are missing.
fn endpoint(options: &Options, end: &str) -> Result<Option<SocketAddr>, ErrorResponse> {
    let (address, port) = (format!("{end}_address"), format!("{end}_port"));
    let wrong = |key: &str, value: &str| invalid(format!("invalid value for option {key}: \"{value}\""));
    match (options.get(&address), options.get(&port)) {
        (None, None) => Ok(None),
        (Some(ip), Some(number)) => Ok(Some(SocketAddr::new(
            ip.parse().map_err(|_| wrong(&address, ip))?,
            number.parse().map_err(|_| wrong(&port, number))?,
        ))),
        _ => Err(invalid(format!("the options {address} and {port} belong together"))),
    }
}

fn invalid(message: String) -> ErrorResponse {
    ErrorResponse::fatal(sqlstate::INVALID_PARAMETER_VALUE, message)
}

fn violation(message: impl Into<String>) -> ErrorResponse {
    ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, message)
}
