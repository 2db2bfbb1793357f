//! Sessions without PostgreSQL, for tests of the code around sessions.

use std::io::{ErrorKind, Read, Write};

use pglite_port::{
    administration::{
        Administration, ClusterSummary, Exported, Figure, Imported, MadeCluster, NewCluster, PrivateBytes, Summary,
        Watched,
    },
    client::{Client, Interest, write_all},
    protocol::error_response::{ErrorResponse, sqlstate},
    session::{Choice, Outcome, SessionEnd, SessionStart, Sessions},
};

/// Sessions that call a function.
pub struct Fake<F>(pub F);

impl<F> Sessions for Fake<F>
where
    F: Fn(&SessionStart<'_>, &mut dyn Client) -> SessionEnd + Send + Sync + 'static,
{
    fn serve(&self, request: SessionStart<'_>, mut client: Box<dyn Client>) -> SessionEnd {
        (self.0)(&request, &mut *client)
    }
}

/// There are no clusters to administer.
impl<F: Send + Sync + 'static> Administration for Fake<F> {
    fn figures(&self) -> Vec<Figure> {
        Vec::new()
    }

    fn watched(&self) -> Watched {
        Watched::default()
    }

    fn readiness(&self) -> Result<(), String> {
        Ok(())
    }

    fn memory(&self) -> Result<Vec<(u32, PrivateBytes)>, ErrorResponse> {
        Ok(Vec::new())
    }

    fn templates(&self) -> Result<Vec<Summary>, ErrorResponse> {
        Ok(Vec::new())
    }

    fn drop_template(&self, name: &str) -> Result<(), ErrorResponse> {
        Err(ErrorResponse::error(sqlstate::UNDEFINED_OBJECT, format!("template \"{name}\" does not exist")))
    }

    fn export_template(&self, name: &str, _: &mut dyn Write) -> Result<Exported, ErrorResponse> {
        Err(ErrorResponse::error(sqlstate::UNDEFINED_OBJECT, format!("template \"{name}\" does not exist")))
    }

    fn import_template(&self, _: &mut dyn Read) -> Result<Imported, ErrorResponse> {
        Err(ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, "there are no templates"))
    }

    fn create_cluster(&self, _: NewCluster) -> Result<MadeCluster, ErrorResponse> {
        Err(ErrorResponse::error(sqlstate::FEATURE_NOT_SUPPORTED, "there are no clusters"))
    }

    fn reset_cluster(&self, name: &str) -> Result<(), ErrorResponse> {
        self.drop_cluster(name)
    }

    fn drop_cluster(&self, name: &str) -> Result<(), ErrorResponse> {
        Err(ErrorResponse::error(sqlstate::INVALID_CATALOG_NAME, format!("cluster \"{name}\" does not exist")))
    }

    fn choose(&self, cluster: &str, _: Choice) -> Outcome {
        self.drop_cluster(cluster)
    }

    fn clusters(&self) -> Vec<ClusterSummary> {
        Vec::new()
    }

    fn reload(&self) {}
}

/// Sends all bytes back until the client is gone.
pub fn echo(client: &mut dyn Client) -> SessionEnd {
    loop {
        let bytes = read_some(client);
        if bytes.is_empty() || write_all(client, &bytes).is_err() {
            return SessionEnd::ClientGone;
        }
    }
}

/// Waits for bytes and returns them; returns none if the client is gone.
pub fn read_some(client: &mut dyn Client) -> Vec<u8> {
    let mut buffer = vec![0; 8192];
    loop {
        match client.read(&mut buffer) {
            Ok(read) => {
                buffer.truncate(read);
                return buffer;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                client.wait(Interest::Read, None);
            }
            Err(error) => panic!("a client's read fails only with WouldBlock: {error}"),
        }
    }
}
