//! The requests `dump` and `run`: files of SQL, out of a cluster and into it.

use std::{fs::File, io::BufReader, path::PathBuf, sync::Arc};

use anyhow::{Context, ensure};

use super::{Router, absolute, required};
use crate::{
    dial::Server,
    dump::{self, Dumped},
    port::frame::Options,
    protocol::error_response::{ErrorResponse, sqlstate},
    script::{self, Choices},
    template::Tools,
};

/// `dump`: dumps the database `database` of the cluster `cluster`, or the default one, into the file `path`, with the
/// options of `pg_dump` in the lines of `options`. The session for it is that of the user `user`; the default of both
/// is `postgres`. The reply has the `bytes` that were written.
pub(super) fn dump_database(router: &Arc<Router>, id: u32, options: &Options) {
    let lines = options.get("options").unwrap_or_default().lines();
    let mut arguments: Vec<String> = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
    transfer(router, id, options, move |tools, server, path| {
        // In front of the others, for whom a `--` may end the options.
        arguments.insert(0, format!("--file={}", path.display()));
        let mut chosen = dump::Options::read(&arguments)?;
        chosen.check_for_request()?;
        chosen.file = Some(path);
        let Dumped { status, bytes, messages } = dump::dump(tools, Some(Arc::new(server)), &chosen, false, |_| {})?;
        ensure!(status == 0, "{messages}");
        Ok(Options::new().with("bytes", bytes))
    });
}

/// `run`: runs the SQL file `path` in the database `database` of the cluster `cluster`, or the default one, as the user
/// `user`; the default of both is `postgres`. With `single_transaction` = `true` all statements are one transaction. The
/// reply has the number of `statements`.
pub(super) fn run_file(router: &Arc<Router>, id: u32, options: &Options) {
    let in_one_transaction = options.get("single_transaction") == Some("true");
    transfer(router, id, options, move |_, server, path| {
        let name = path.display().to_string();
        let input = File::open(&path).with_context(|| format!("{name} cannot be read"))?;
        let choices = Choices { in_one_transaction, ..Choices::default() };
        let (server, input) = (Arc::new(server), BufReader::new(input));
        let ran = script::run(&server, input, &name, choices, Arc::new(|_| {}), |_| {})?;
        Ok(Options::new().with("statements", ran.statements))
    });
}

/// Does `work` with the file `path` and the database that the options name, on a thread of its own.
fn transfer(
    router: &Arc<Router>,
    id: u32,
    options: &Options,
    work: impl FnOnce(&Tools, Server, PathBuf) -> anyhow::Result<Options> + Send + 'static,
) {
    let path = match required(options, "path").and_then(|path| absolute("path", &path)) {
        Ok(path) => path,
        Err(report) => return router.reply(id, Err(report)),
    };
    let cluster = options.get("cluster").map(str::to_owned);
    let text = |key| options.get(key).map(str::to_owned);
    let (database, user) = (text("database"), text("user"));
    router.reply_on_thread(id, move |router| {
        let tools = router.administration.tools()?;
        let server = Server::of(router.connections.clone(), cluster, router.log().of_connection(0));
        let server = server.with(database.as_deref(), user.as_deref());
        let done = work(&tools, server, path);
        done.map_err(|error| ErrorResponse::error(sqlstate::IO_ERROR, format!("{error:#}")))
    });
}
