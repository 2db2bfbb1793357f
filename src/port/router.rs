//! From a frame to the connection or the request that it is about.

use std::{
    collections::{HashMap, VecDeque},
    ffi::CStr,
    net::SocketAddr,
    sync::Arc,
    thread,
};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::{
    administration::{Administration, Figure, PrivateBytes, Summary, process_figures},
    client::Endpoints,
    connection::{Connections, Opening},
    log::LogSink,
    port::{
        frame::{Frame, Kind, Options},
        outbox::Outbox,
        relay::{Relay, close_options},
    },
    protocol::error_response::{ErrorResponse, sqlstate},
    session::{Control, Mode, Outcome, PendingTask, Task, cancel::Interrupt},
};

/// How many closed connections are remembered, so that frames that were under way are not answered.
const REMEMBERED: usize = 1024;

/// What answers a verb: it is given the request's id and options, and replies with [`Router::reply`], at
/// once or later.
type Verb = fn(&Arc<Router>, u32, &Options);

/// Every verb of a request frame: the one place to add another.
const VERBS: [(&str, Verb); 8] = [
    ("stats", stats),
    ("shutdown", shut_down),
    ("memory", memory),
    ("templates", templates),
    ("drop_template", drop_template),
    ("reset", reset),
    ("freeze", freeze),
    ("reload", reload),
];

/// What the reply to a request says.
type Reply = Result<Options, ErrorResponse>;

/// Knows the connections that the parent has opened.
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

/// What an open frame asks for.
struct Wanted {
    mode: Mode,
    template: Option<String>,
    endpoints: Endpoints,
}

impl Router {
    /// A router without connections. `mode` is for those that do not choose one.
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

    /// Acts on a frame from the parent. Waits, if the parent does not read its answers.
    pub(crate) fn accept(self: &Arc<Self>, frame: Frame<'_>) {
        match frame.kind {
            Kind::Open => self.open(frame.id, frame.payload),
            Kind::Request => self.request(frame.id, frame.payload),
            Kind::Data | Kind::Window | Kind::Close => self.pass_on(frame),
            // The port refuses these.
            Kind::Hello | Kind::Reply | Kind::Log => {}
        }
    }

    /// The parent is gone, and with it every client.
    pub(crate) fn parent_gone(&self) {
        let entries: Vec<Entry> = self.table.lock().open.values().cloned().collect();
        for entry in entries {
            entry.relay.client_gone();
            entry.control.interrupt(Interrupt::ClientGone);
        }
    }

    /// Replies to the request `id`.
    fn reply(&self, id: u32, result: Reply) {
        let (word, options) = match result {
            Ok(options) => (&b"ok\0"[..], options),
            Err(report) => (&b"error\0"[..], Options::new().with("code", report.code).with("message", report.message)),
        };
        let payload = [word, &options.to_bytes()].concat();
        self.outbox.push(Frame { kind: Kind::Reply, id, payload: &payload });
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

    /// What the options of an open frame ask for.
    fn parse_opening(&self, payload: &[u8]) -> Result<Wanted, ErrorResponse> {
        let options = Options::parse(payload).map_err(|error| violation(error.to_string()))?;
        let mode = match options.get("mode") {
            Some(text) => text.parse().map_err(|error| invalid(format!("{error}")))?,
            None => self.mode,
        };
        let template = options.get("template").map(str::to_owned);
        if template.is_some() && mode == Mode::Shared {
            return Err(invalid("a template is for mode isolated; open the connection with that".to_owned()));
        }
        let endpoints = Endpoints::new(endpoint(&options, "peer")?, endpoint(&options, "local")?);
        Ok(Wanted { mode, template, endpoints })
    }

    fn start(self: &Arc<Self>, id: u32, wanted: Wanted) -> Result<(), ErrorResponse> {
        let Wanted { mode, template, endpoints } = wanted;
        let outbox = self.outbox.clone();
        let log = LogSink::new(move |id, level, target, text| outbox.push_log(id, level, target, text));
        let opening = Opening { id, mode, template, log: log.of_connection(id) };
        let router = self.clone();
        // Held until the entry is in, so that a connection that ends at once finds itself.
        let mut table = self.table.lock();
        let relay = Relay::new(id, self.outbox.clone(), endpoints);
        let control = self
            .connections
            .start(relay.clone(), opening, move |relay, report| {
                router.ended(id, &relay, &report);
            })
            .map_err(|error| {
                let message = format!("no thread for another connection: {error}");
                ErrorResponse::fatal(sqlstate::INSUFFICIENT_RESOURCES, message)
                    .with_hint("Close some connections, or raise the limits on processes and memory.")
            })?;
        table.closed.retain(|closed| *closed != id);
        table.open.insert(id, Entry { relay, control });
        Ok(())
    }

    /// A connection's thread has come to its end.
    fn ended(&self, id: u32, relay: &Relay, report: &ErrorResponse) {
        {
            let mut table = self.table.lock();
            // The id may have been closed, and opened for another connection, in the meantime.
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

    /// Closes a connection whose parent has broken the protocol.
    fn close_for_violation(&self, id: u32, message: String) {
        let entry = self.table.lock().close(id);
        if let Some(Entry { relay, control, .. }) = entry {
            relay.close(&violation(message));
            control.interrupt(Interrupt::Terminate);
        }
    }

    /// Answers a frame for a connection that is not there.
    fn refuse(&self, id: u32, report: &ErrorResponse) {
        self.outbox.push_options(Kind::Close, id, &close_options(report));
    }

    fn request(self: &Arc<Self>, id: u32, payload: &[u8]) {
        self.outbox.wait_for_room();
        let (verb, options) = match parse_request(payload) {
            Ok(request) => request,
            Err(report) => return self.reply(id, Err(report)),
        };
        if let Some((_, answer)) = VERBS.iter().find(|(name, _)| *name == verb) {
            answer(self, id, &options);
        } else {
            let message = format!("unknown verb {verb:?}");
            self.reply(id, Err(ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, message)));
        }
    }
}

impl Router {
    /// Replies to the request `id` with what `ask` finds out, which may take a while.
    fn reply_on_thread(self: &Arc<Self>, id: u32, ask: impl FnOnce(&Self) -> Reply + Send + 'static) {
        let router = self.clone();
        let work = move || router.reply(id, ask(&router));
        if let Err(error) = thread::Builder::new().name("request".to_owned()).spawn(work) {
            let message = format!("no thread for the request: {error}");
            self.reply(id, Err(ErrorResponse::error(sqlstate::INSUFFICIENT_RESOURCES, message)));
        }
    }

    /// Gives `task` to the connection that the options name, and replies to the request `id` when it is done.
    fn assign_task(self: &Arc<Self>, id: u32, options: &Options, task: Result<Task, ErrorResponse>) {
        let asked = task.and_then(|task| Ok((task, self.asked_connection(options)?)));
        match asked {
            Ok((task, control)) => {
                let router = self.clone();
                let report = move |outcome: Outcome| router.reply(id, outcome.map(|()| Options::new()));
                control.assign(PendingTask::new(task, report));
            }
            Err(report) => self.reply(id, Err(report)),
        }
    }

    /// The connection that the option `connection` names.
    fn asked_connection(&self, options: &Options) -> Result<Control, ErrorResponse> {
        let text = required(options, "connection")?;
        let entry = text.parse().ok().and_then(|connection| self.table.lock().open.get(&connection).cloned());
        entry.map(|entry| entry.control).ok_or_else(|| {
            let message = format!("connection {text} does not exist");
            ErrorResponse::error(sqlstate::CONNECTION_DOES_NOT_EXIST, message)
        })
    }
}

impl Table {
    /// Takes a connection out and remembers that it was there.
    fn close(&mut self, id: u32) -> Option<Entry> {
        let entry = self.open.remove(&id)?;
        if self.closed.len() == REMEMBERED {
            self.closed.pop_front();
        }
        self.closed.push_back(id);
        Some(entry)
    }
}

/// The verb and the options of a request.
fn parse_request(payload: &[u8]) -> Result<(&str, Options), ErrorResponse> {
    let verb = CStr::from_bytes_until_nul(payload).map_err(|_| violation("a request's verb ends with a NUL byte"))?;
    let options = Options::parse(&payload[verb.count_bytes() + 1..]).map_err(|error| violation(error.to_string()))?;
    Ok((verb.to_str().map_err(|_| violation("a request's verb is UTF-8"))?, options))
}

/// The address in the options `peer_address` and `peer_port`, or the like of another `end`; none if neither is there.
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

/// `stats`: the figures of the program, see [`figure`](crate::administration::figure).
fn stats(router: &Arc<Router>, id: u32, _: &Options) {
    router.reply_on_thread(id, |router| {
        let figures = [router.connections.figures(), process_figures(), router.administration.figures()];
        let add = |options: Options, Figure { metric, value }: Figure| options.with(metric.name, value);
        Ok(figures.into_iter().flatten().fold(Options::new(), add))
    });
}

/// `shutdown`: sessions end with `57P01`, then the program exits.
fn shut_down(router: &Arc<Router>, id: u32, _: &Options) {
    router.reply(id, Ok(Options::new()));
    (router.on_shut_down)();
}

/// `memory`: private bytes of the connections that have a cluster of their own: for each `connection`, `memory`,
/// `files` and their `sum`, then the totals.
fn memory(router: &Arc<Router>, id: u32, _: &Options) {
    router.reply_on_thread(id, |router| {
        let connections = router.administration.memory()?;
        let total: PrivateBytes = connections.iter().map(|(_, bytes)| *bytes).sum();
        let add = |options: Options, keys: [&str; 3], bytes: PrivateBytes| {
            options.with(keys[0], bytes.memory).with(keys[1], bytes.files).with(keys[2], bytes.sum())
        };
        let options = connections.into_iter().fold(Options::new(), |options, (connection, bytes)| {
            add(options.with("connection", connection), ["memory", "files", "sum"], bytes)
        });
        Ok(add(options, ["total_memory", "total_files", "total"], total))
    });
}

/// `reload`: has the clusters read their configuration files again, see [`Administration::reload`].
fn reload(router: &Arc<Router>, id: u32, _: &Options) {
    router.reply_on_thread(id, |router| {
        router.administration.reload();
        Ok(Options::new())
    });
}

/// `templates`: for each template `name`, `database`, `key`, `size` on disk in bytes, and when it was `made`, in
/// microseconds since 1970.
fn templates(router: &Arc<Router>, id: u32, _: &Options) {
    router.reply_on_thread(id, |router| {
        let add = |options: Options, template: Summary| {
            let made = Timestamp::try_from(template.made).unwrap_or_default().as_microsecond();
            let options = options.with("name", template.name).with("database", template.database);
            options.with("key", template.key.unwrap_or_default()).with("size", template.size).with("made", made)
        };
        Ok(router.administration.templates()?.into_iter().fold(Options::new(), add))
    });
}

/// `drop_template`: removes the template `name`.
fn drop_template(router: &Arc<Router>, id: u32, options: &Options) {
    match required(options, "name") {
        Ok(name) => router
            .reply_on_thread(id, move |router| router.administration.drop_template(&name).map(|()| Options::new())),
        Err(report) => router.reply(id, Err(report)),
    }
}

/// `reset`: puts the cluster of `connection` back to its template, see [`Task::Reset`].
fn reset(router: &Arc<Router>, id: u32, options: &Options) {
    router.assign_task(id, options, Ok(Task::Reset));
}

/// `freeze`: makes the template `name` from the cluster of `connection` and keeps `key` with it, see [`Task::Freeze`].
fn freeze(router: &Arc<Router>, id: u32, options: &Options) {
    let key = options.get("key").map(str::to_owned);
    router.assign_task(id, options, required(options, "name").map(|name| Task::Freeze { name, key }));
}

/// The value of an option that has to be there.
fn required(options: &Options, key: &str) -> Result<String, ErrorResponse> {
    let value = options.get(key).filter(|value| !value.is_empty());
    value.map(str::to_owned).ok_or_else(|| {
        ErrorResponse::error(sqlstate::INVALID_PARAMETER_VALUE, format!("the option {key} is missing or empty"))
    })
}
