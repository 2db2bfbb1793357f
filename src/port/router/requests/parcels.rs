//! The requests `export_template` and `import_template`: templates as files.

use std::{
    fs::File,
    io::{BufReader, BufWriter},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Reply, Router, absolute, required};
use crate::{
    administration::{Exported, Imported},
    backup::Target,
    port::frame::Options,
    protocol::error_response::{ErrorResponse, sqlstate},
};

/// `export_template`: writes the template `name` into the file `path`, which appears when it is complete. The reply has
/// its `bytes` and the `digest` of the template.
pub(super) fn export_template(router: &Arc<Router>, id: u32, options: &Options) {
    let name = required(options, "name");
    on_path(router, id, options, |router, path| {
        let name = name?;
        let target = Target::open(path).map_err(io_error)?;
        let mut out = BufWriter::new(target.file());
        let Exported { bytes, digest } = router.administration.export_template(&name, &mut out)?;
        drop(out);
        target.finish().map_err(io_error)?;
        Ok(Options::new().with("bytes", bytes).with("digest", digest))
    });
}

/// `import_template`: puts the template in the file `path` into its place. The reply has its `name`, the `database` in
/// it, its `digest`, and whether it is `new`: `false` if it was there already.
pub(super) fn import_template(router: &Arc<Router>, id: u32, options: &Options) {
    on_path(router, id, options, |router, path| {
        let file = File::open(path).map_err(|error| {
            ErrorResponse::error(sqlstate::UNDEFINED_FILE, format!("{} cannot be read: {error}", path.display()))
        })?;
        let Imported { name, database, digest, is_new } =
            router.administration.import_template(&mut BufReader::new(file))?;
        let options = Options::new().with("name", name).with("database", database);
        Ok(options.with("digest", digest).with("new", is_new))
    });
}

/// Does `work` with the file that the options name, on a thread of its own.
fn on_path(
    router: &Arc<Router>,
    id: u32,
    options: &Options,
    work: impl FnOnce(&Router, &Path) -> Reply + Send + 'static,
) {
    match required(options, "path").and_then(|path| absolute("path", &path)) {
        Ok::<PathBuf, _>(path) => router.reply_on_thread(id, move |router| work(router, &path)),
        Err(report) => router.reply(id, Err(report)),
    }
}

fn io_error(error: anyhow::Error) -> ErrorResponse {
    ErrorResponse::error(sqlstate::IO_ERROR, format!("{error:#}"))
}
