//! Requests of the parent: to the program, and to single connections.

use std::{
    ffi::CStr,
    io,
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    thread,
    time::SystemTime,
};

use jiff::Timestamp;

use super::{Router, violation};
use crate::{
    administration::{
        self, ClusterOrigin, ClusterSummary, Figure, Lifetime, MadeCluster, NewCluster, PrivateBytes, figure,
        process_figures,
    },
    backup::{self, Summary},
    clock::ClockSetting,
    dial,
    port::frame::{Frame, Kind, Options},
    protocol::error_response::{ErrorResponse, sqlstate},
    quota::{Limits, Size},
    session::{Choice, Control, Outcome, PendingTask, Task, panic_text},
};

mod parcels;
mod transfers;

/// The function of a verb. It gets the request's id and options, and replies with [`Router::reply`], at once or later.
type Verb = fn(&Arc<Router>, u32, &Options);

/// All verbs of request frames. A new verb is a row here.
const VERBS: [(&str, Verb); 18] = [
    ("stats", stats),
    ("shutdown", shut_down),
    ("memory", memory),
    ("templates", templates),
    ("drop_template", drop_template),
    ("export_template", parcels::export_template),
    ("import_template", parcels::import_template),
    ("create_cluster", create_cluster),
    ("drop_cluster", drop_cluster),
    ("clusters", clusters),
    ("reset", reset),
    ("freeze", freeze),
    ("clock", set_clock),
    ("seed", seed),
    ("reload", reload),
    ("backup", back_up),
    ("dump", transfers::dump_database),
    ("run", transfers::run_file),
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
            Err(ErrorResponse { code, message, hint, .. }) => {
                let options = Options::new().with("code", code).with("message", message);
                (&b"error\0"[..], hint.into_iter().fold(options, |options, hint| options.with("hint", hint)))
            }
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

    /// Opens a session of a cluster, or of the default one, for the program itself; the other end of its socket.
    fn open_session(&self, cluster: Option<String>) -> io::Result<UnixStream> {
        dial::open_session(&self.connections, cluster, self.log().of_connection(0))
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

/// `stats`: the figures of the program, see [`figure`].
fn stats(router: &Arc<Router>, id: u32, _: &Options) {
    router.reply_on_thread(id, |router| {
        let queued = vec![figure::QUEUED_FRAMES.figure(router.outbox.len() as u64)];
        let figures = [router.connections.figures(), process_figures(), router.administration.figures(), queued];
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

/// `templates`: for each template `name`, `database`, `key`, `size` on disk in bytes, when it was `made`, in
/// microseconds since 1970, and its `digest`.
fn templates(router: &Arc<Router>, id: u32, _: &Options) {
    router.reply_on_thread(id, |router| {
        let add = |options: Options, template: administration::Summary| {
            let made = microseconds(template.made);
            let options = options.with("name", template.name).with("database", template.database);
            let options = options.with("key", template.key.unwrap_or_default()).with("size", template.size);
            options.with("made", made).with("digest", template.digest)
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

/// `create_cluster`: makes a cluster. Options: `name`; `template`, or `branch` of another cluster; `data`, the absolute
/// path of the directory that it is kept in; `lifetime`; `memory_limit` and `disk_limit`, sizes such as `512MB`; `set`, a
/// setting `name=value`, any number of times. The reply has its `name` and the `database` in it.
fn create_cluster(router: &Arc<Router>, id: u32, options: &Options) {
    match new_cluster(options) {
        Ok(new) => router.reply_on_thread(id, move |router| {
            let MadeCluster { name, database } = router.administration.create_cluster(new)?;
            Ok(Options::new().with("name", name).with("database", database))
        }),
        Err(report) => router.reply(id, Err(report)),
    }
}

fn new_cluster(options: &Options) -> Result<NewCluster, ErrorResponse> {
    let given = |key| options.get(key).map(str::to_owned);
    let origin = match (given("template"), given("branch")) {
        (None, None) => ClusterOrigin::Empty,
        (Some(template), None) => ClusterOrigin::Template(template),
        (None, Some(cluster)) => ClusterOrigin::Branch(cluster),
        (Some(_), Some(_)) => return Err(invalid("use one of the options template and branch".to_owned())),
    };
    let lifetime = given("lifetime").map_or(Ok(Lifetime::default()), |text| text.parse());
    let settings = options.iter().filter(|(key, _)| *key == "set").map(|(_, setting)| {
        let pair = setting.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        pair.ok_or_else(|| invalid(format!("the option set is not name=value: {setting:?}")))
    });
    Ok(NewCluster {
        name: given("name"),
        origin,
        data_directory: options.get("data").map(|data| absolute("data", data)).transpose()?,
        lifetime: lifetime.map_err(|error| invalid(error.to_string()))?,
        limits: limits(options)?,
        settings: settings.collect::<Result<_, _>>()?,
    })
}

/// `drop_cluster`: ends the cluster `name` and its sessions.
fn drop_cluster(router: &Arc<Router>, id: u32, options: &Options) {
    match required(options, "name") {
        Ok(name) => {
            router
                .reply_on_thread(id, move |router| router.administration.drop_cluster(&name).map(|()| Options::new()));
        }
        Err(report) => router.reply(id, Err(report)),
    }
}

/// `clusters`: for each cluster `name`, `origin`, `data` (empty for a cluster in memory), `lifetime`, `connections`, when
/// it was `made`, in microseconds since 1970, the bytes of `memory` and `disk` that it uses, and the limits of these,
/// `memory_limit` and `disk_limit` (empty without a limit).
fn clusters(router: &Arc<Router>, id: u32, _: &Options) {
    router.reply_on_thread(id, |router| {
        let add = |options: Options, cluster: ClusterSummary| {
            let data = cluster.data_directory.map(|path| path.display().to_string()).unwrap_or_default();
            let options = options.with("name", cluster.name).with("origin", cluster.origin).with("data", data);
            let options = options.with("lifetime", cluster.lifetime).with("connections", cluster.connections);
            let options = options.with("made", microseconds(cluster.made));
            let limit = |limit: Option<u64>| limit.map(|limit| limit.to_string()).unwrap_or_default();
            let options = options.with("memory", cluster.memory).with("memory_limit", limit(cluster.limits.memory));
            options.with("disk", cluster.disk).with("disk_limit", limit(cluster.limits.disk))
        };
        Ok(router.administration.clusters().into_iter().fold(Options::new(), add))
    });
}

/// `reset`: puts the cluster of `connection` back to its template, see [`Task::Reset`]; or the cluster `cluster` to what
/// it was when it was made, see [`reset_cluster`](crate::administration::Administration::reset_cluster).
fn reset(router: &Arc<Router>, id: u32, options: &Options) {
    if let Some(name) = options.get("cluster").map(str::to_owned) {
        return router
            .reply_on_thread(id, move |router| router.administration.reset_cluster(&name).map(|()| Options::new()));
    }
    router.assign_task(id, options, Ok(Task::Reset));
}

/// `freeze`: makes the template `name` from the cluster of `connection` and keeps `key` with it, and `memory_limit` and
/// `disk_limit`, the limits of clusters that are copies of it, see [`Task::Freeze`].
fn freeze(router: &Arc<Router>, id: u32, options: &Options) {
    let key = options.get("key").map(str::to_owned);
    let task = required(options, "name").and_then(|name| Ok(Task::Freeze { name, key, limits: limits(options)? }));
    router.assign_task(id, options, task);
}

/// `clock`: sets the clock of a cluster, see [`Choice::Clock`]. The option `set` is `travel` to the time `at` or `by` a
/// number of microseconds; `freeze`, `at` a time if there is one; or `back` to real time. Times are in microseconds since
/// 1970. The cluster is `cluster`, or that of `connection`.
fn set_clock(router: &Arc<Router>, id: u32, options: &Options) {
    choose(router, id, options, clock_setting(options).map(Choice::Clock));
}

fn clock_setting(options: &Options) -> Result<ClockSetting, ErrorResponse> {
    let at = options.get("at").map(|_| number(options, "at")).transpose()?;
    let by = options.get("by").map(|_| number(options, "by")).transpose()?;
    match (required(options, "set")?.as_str(), at, by) {
        ("travel", Some(time), None) => Ok(ClockSetting::At(time)),
        ("travel", None, Some(microseconds)) => Ok(ClockSetting::By(microseconds)),
        ("freeze", time, None) => Ok(ClockSetting::Frozen(time)),
        ("back", None, None) => Ok(ClockSetting::Real),
        _ => Err(ErrorResponse::error(
            sqlstate::INVALID_PARAMETER_VALUE,
            "the option set is travel with one of at and by, freeze with or without at, or back",
        )),
    }
}

/// `seed`: makes the random numbers of a cluster those of `seed`, see [`Choice::Seed`]. The cluster is `cluster`, or that
/// of `connection`.
fn seed(router: &Arc<Router>, id: u32, options: &Options) {
    choose(router, id, options, number(options, "seed").map(Choice::Seed));
}

/// Makes the choice for the cluster that the options name.
fn choose(router: &Arc<Router>, id: u32, options: &Options, choice: Result<Choice, ErrorResponse>) {
    match options.get("cluster") {
        Some(cluster) => {
            let chosen = choice.and_then(|choice| router.administration.choose(cluster, choice));
            router.reply(id, chosen.map(|()| Options::new()));
        }
        None => router.assign_task(id, options, choice.map(Task::Choose)),
    }
}

/// `backup`: backs the cluster `cluster`, or the default one, up into the archive `path`, see
/// [`back_up`](crate::backup::back_up). The session
/// for it is in `database`, as the superuser `user`; the default of both is `postgres`. The reply has the `files`,
/// their `bytes` and the `pages` that were verified.
fn back_up(router: &Arc<Router>, id: u32, options: &Options) {
    let path = match required(options, "path").and_then(|path| absolute("path", &path)) {
        Ok(path) => path,
        Err(report) => return router.reply(id, Err(report)),
    };
    let cluster = options.get("cluster").map(str::to_owned);
    let or_postgres = |key| options.get(key).unwrap_or("postgres").to_owned();
    let (database, user) = (or_postgres("database"), or_postgres("user"));
    let session = router.clone();
    router.reply_on_thread(id, move |_| {
        let backed_up = session.open_session(cluster).map_err(anyhow::Error::from);
        let backed_up = backed_up.and_then(|stream| backup::back_up_over(stream, &database, &user, &path));
        match backed_up {
            Ok(Summary { files, bytes, pages }) => {
                Ok(Options::new().with("files", files).with("bytes", bytes).with("pages", pages))
            }
            Err(error) => Err(ErrorResponse::error(sqlstate::IO_ERROR, format!("{error:#}"))),
        }
    });
}

/// Microseconds since 1970.
fn microseconds(time: SystemTime) -> i64 {
    Timestamp::try_from(time).unwrap_or_default().as_microsecond()
}

/// The path in an option, which must be absolute.
fn absolute(key: &str, path: &str) -> Result<PathBuf, ErrorResponse> {
    if PathBuf::from(path).is_absolute() {
        return Ok(path.into());
    }
    let message = format!("the option {key} is not an absolute path: {path}");
    Err(ErrorResponse::error(sqlstate::INVALID_PARAMETER_VALUE, message))
}

/// The value of a required option.
fn required(options: &Options, key: &str) -> Result<String, ErrorResponse> {
    let value = options.get(key).filter(|value| !value.is_empty());
    value.map(str::to_owned).ok_or_else(|| {
        ErrorResponse::error(sqlstate::INVALID_PARAMETER_VALUE, format!("the option {key} is missing or empty"))
    })
}

/// The error for an option that has a value which it cannot have.
fn invalid(message: String) -> ErrorResponse {
    ErrorResponse::error(sqlstate::INVALID_PARAMETER_VALUE, message)
}

/// The options `memory_limit` and `disk_limit`.
pub(super) fn limits(options: &Options) -> Result<Limits, ErrorResponse> {
    let size = |key: &str| {
        let size = options.get(key).map(str::parse::<Size>).transpose();
        size.map(|size| size.map(|size| size.0))
            .map_err(|error| invalid(format!("invalid value for option {key}: {error}")))
    };
    let limits = Limits { memory: size("memory_limit")?, disk: size("disk_limit")? };
    limits.check().map_err(|error| invalid(error.to_string()))
}

/// The value of a required option that is a number.
fn number<T: FromStr>(options: &Options, key: &str) -> Result<T, ErrorResponse> {
    let text = required(options, key)?;
    text.parse().map_err(|_| {
        let message = format!("invalid value for option {key}: \"{text}\"");
        ErrorResponse::error(sqlstate::INVALID_PARAMETER_VALUE, message)
    })
}
