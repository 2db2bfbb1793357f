//! Requests of the parent: to the program, and to single connections.

use std::{
    ffi::CStr,
    io,
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    thread,
};

use jiff::Timestamp;

use super::{Router, violation};
use crate::{
    administration::{self, Figure, PrivateBytes, process_figures},
    backup::{self, Summary},
    connection::Opening,
    port::frame::{Frame, Kind, Options},
    protocol::error_response::{ErrorResponse, sqlstate},
    serve::socket::SocketClient,
    session::{Control, Mode, Outcome, PendingTask, Task, panic_text},
};

/// The function of a verb. It gets the request's id and options, and replies with [`Router::reply`], at once or later.
type Verb = fn(&Arc<Router>, u32, &Options);

/// All verbs of request frames. A new verb is a row here.
const VERBS: [(&str, Verb); 9] = [
    ("stats", stats),
    ("shutdown", shut_down),
    ("memory", memory),
    ("templates", templates),
    ("drop_template", drop_template),
    ("reset", reset),
    ("freeze", freeze),
    ("reload", reload),
    ("backup", back_up),
];

/// The options of a reply, or the error.
type Reply = Result<Options, ErrorResponse>;

impl Router {
    /// Handles a request frame.
    pub(super) fn request(self: &Arc<Self>, id: u32, payload: &[u8]) {
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

    /// Replies to the request `id`.
    fn reply(&self, id: u32, result: Reply) {
        let (word, options) = match result {
            Ok(options) => (&b"ok\0"[..], options),
            Err(report) => (&b"error\0"[..], Options::new().with("code", report.code).with("message", report.message)),
        };
        let payload = [word, &options.to_bytes()].concat();
        self.outbox.push(Frame { kind: Kind::Reply, id, payload: &payload });
    }

    /// Replies to the request `id` with the result of `ask`, which runs on a new thread because it may take a while.
    fn reply_on_thread(self: &Arc<Self>, id: u32, ask: impl FnOnce(&Self) -> Reply + Send + 'static) {
        let router = self.clone();
        let work = move || {
            let asked = catch_unwind(AssertUnwindSafe(|| ask(&router)));
            router.reply(
                id,
                asked.unwrap_or_else(|panic| {
                    let message = format!("the request panicked: {}", panic_text(&*panic));
                    Err(ErrorResponse::error(sqlstate::INTERNAL_ERROR, message))
                }),
            );
        };
        if let Err(error) = thread::Builder::new().name("request".to_owned()).spawn(work) {
            let message = format!("no thread for the request: {error}");
            self.reply(id, Err(ErrorResponse::error(sqlstate::INSUFFICIENT_RESOURCES, message)));
        }
    }

    /// Opens a session of the shared cluster for the program itself; the other end of its socket.
    fn open_session(&self) -> io::Result<UnixStream> {
        let (here, there) = UnixStream::pair()?;
        let log = self.log().of_connection(0);
        let opening = Opening { id: 0, mode: Mode::Shared, template: None, log };
        self.connections.start(SocketClient::unix(there)?, opening, |_, _| {})?;
        Ok(here)
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

/// The verb and the options of a request.
fn parse_request(payload: &[u8]) -> Result<(&str, Options), ErrorResponse> {
    let verb = CStr::from_bytes_until_nul(payload).map_err(|_| violation("a request's verb ends with a NUL byte"))?;
    let options = Options::parse(&payload[verb.count_bytes() + 1..]).map_err(|error| violation(error.to_string()))?;
    Ok((verb.to_str().map_err(|_| violation("a request's verb is UTF-8"))?, options))
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

/// `reload`: the clusters reload their configuration files, see
/// [`reload`](crate::administration::Administration::reload).
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
        let add = |options: Options, template: administration::Summary| {
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

/// `backup`: backs the shared cluster up into the archive `path`, see [`back_up`](crate::backup::back_up). The session
/// for it is in `database`, as the superuser `user`; the default of both is `postgres`. The reply has the `files`,
/// their `bytes` and the `pages` that were verified.
fn back_up(router: &Arc<Router>, id: u32, options: &Options) {
    let path = match required(options, "path").map(PathBuf::from) {
        Ok(path) if path.is_absolute() => path,
        Ok(path) => {
            let message = format!("the option path is not an absolute path: {}", path.display());
            let report = ErrorResponse::error(sqlstate::INVALID_PARAMETER_VALUE, message);
            return router.reply(id, Err(report));
        }
        Err(report) => return router.reply(id, Err(report)),
    };
    let or_postgres = |key| options.get(key).unwrap_or("postgres").to_owned();
    let (database, user) = (or_postgres("database"), or_postgres("user"));
    let session = router.clone();
    router.reply_on_thread(id, move |_| {
        let backed_up = session.open_session().map_err(anyhow::Error::from);
        let backed_up = backed_up.and_then(|stream| backup::back_up_over(stream, &database, &user, &path));
        match backed_up {
            Ok(Summary { files, bytes, pages }) => {
                Ok(Options::new().with("files", files).with("bytes", bytes).with("pages", pages))
            }
            Err(error) => Err(ErrorResponse::error(sqlstate::IO_ERROR, format!("{error:#}"))),
        }
    });
}

/// The value of a required option.
fn required(options: &Options, key: &str) -> Result<String, ErrorResponse> {
    let value = options.get(key).filter(|value| !value.is_empty());
    value.map(str::to_owned).ok_or_else(|| {
        ErrorResponse::error(sqlstate::INVALID_PARAMETER_VALUE, format!("the option {key} is missing or empty"))
    })
}
