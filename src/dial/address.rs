//! Where a server is, and as whom to connect, as `psql` finds it out: by a URL, by options, by the environment.

use std::{env, str::FromStr};

use anyhow::{Context, bail, ensure};
use tokio_postgres::Config;

use super::{
    encryption::{self, Encryption},
    password,
};

/// When the user is asked for a password.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AskForPassword {
    /// When the server wants one and none was given.
    #[default]
    IfNeeded,
    /// Never (`--no-password`).
    Never,
    /// Before connecting (`--password`).
    Always,
}

/// The parts of an address that were given. What is missing comes from the environment (`PGHOST`, `PGHOSTADDR`,
/// `PGPORT`, `PGUSER`, `PGDATABASE`, `PGPASSWORD`, `PGOPTIONS`, `PGCONNECT_TIMEOUT`, `PGSSLMODE`, `PGSSLROOTCERT`,
/// `PGSSLCERT`, `PGSSLKEY`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// A URL (`postgres://…`), a connection string (`host=… dbname=…`), or the name of a database. What it says
    /// precedes the other parts.
    pub database: Option<String>,
    /// The host's name, or the directory of a unix socket; several with commas between them are tried in their order.
    pub host: Option<String>,
    /// The port, or that of each host, with commas between them.
    pub port: Option<String>,
    /// The user.
    pub user: Option<String>,
    /// When the user is asked for a password.
    pub ask: AskForPassword,
}

impl Address {
    /// Checks that a cluster which the program starts itself has such an address: it has databases and users only.
    ///
    /// # Errors
    /// When the address is that of another server.
    pub fn check_for_own_cluster(&self) -> anyhow::Result<()> {
        let names_server = self.host.is_some() || self.port.is_some() || self.is_connection_string();
        // What it is stays unsaid: a URL may have a password.
        ensure!(
            !names_server,
            "--data starts the cluster in a directory, and a URL, --host or --port is the address of a server: leave \
             out one of them, or name only a database"
        );
        Ok(())
    }

    /// Whether the database is a URL or a connection string.
    fn is_connection_string(&self) -> bool {
        let given = self.database.as_deref().unwrap_or_default();
        given.starts_with("postgres://") || given.starts_with("postgresql://") || given.contains('=')
    }

    /// The address in the driver's form, and how connections are encrypted.
    ///
    /// # Errors
    /// When a part of it cannot be understood.
    pub(super) fn resolve(&self) -> anyhow::Result<(Config, Encryption)> {
        self.resolve_with(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn resolve_with(&self, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<(Config, Encryption)> {
        let given = self.database.as_deref().unwrap_or_default();
        let address = if self.is_connection_string() { given } else { "" };
        let (address, encryption) = encryption::take(address, &variable)?;
        let mut config = Config::new();
        if self.is_connection_string() {
            config = Config::from_str(&address).context("the address of the server cannot be understood")?;
        } else if !given.is_empty() {
            config.dbname(given);
        }
        let or_variable = |part: &Option<String>, name| part.clone().or_else(|| variable(name));
        if let Some(service) = variable("PGSERVICE").filter(|_| !self.is_connection_string()) {
            bail!("PGSERVICE={service} names an entry of a service file, which this command does not read: give a URL");
        }
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            // Several are tried in their order.
            let (hosts, addresses) = (or_variable(&self.host, "PGHOST"), variable("PGHOSTADDR"));
            for address in addresses.iter().flat_map(|addresses| addresses.split(',')) {
                let parsed = address.parse().with_context(|| format!("PGHOSTADDR: {address:?} is no IP address"))?;
                config.hostaddr(parsed);
            }
            let default = addresses.is_none().then(|| "localhost".to_owned());
            for host in hosts.or(default).iter().flat_map(|hosts| hosts.split(',')) {
                config.host(host);
            }
        }
        if config.get_ports().is_empty()
            && let Some(ports) = or_variable(&self.port, "PGPORT")
        {
            for port in ports.split(',') {
                config.port(port.parse().with_context(|| format!("{port:?} is not the number of a port"))?);
            }
        }
        if config.get_user().is_none() {
            let user = or_variable(&self.user, "PGUSER").or_else(|| variable("USER"));
            config.user(user.as_deref().unwrap_or("postgres"));
        }
        if config.get_dbname().is_none() {
            let user = config.get_user().unwrap_or_default().to_owned();
            config.dbname(variable("PGDATABASE").unwrap_or(user));
        }
        if config.get_options().is_none()
            && let Some(options) = variable("PGOPTIONS")
        {
            config.options(options);
        }
        if config.get_connect_timeout().is_none()
            && let Some(seconds) = variable("PGCONNECT_TIMEOUT").and_then(|seconds| seconds.parse().ok())
            && seconds > 0
        {
            config.connect_timeout(std::time::Duration::from_secs(seconds));
        }
        if config.get_password().is_none()
            && let Some(password) = variable("PGPASSWORD").or_else(|| password::kept(&config, &variable))
        {
            config.password(password);
        }
        Ok((config, encryption))
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::Host;

    use super::*;

    fn resolve(address: &Address, variables: &[(&str, &str)]) -> anyhow::Result<Config> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        address.resolve_with(variable).map(|(config, _)| config)
    }

    fn of(database: &str) -> Address {
        Address { database: Some(database.to_owned()), ..Address::default() }
    }

    #[test]
    fn a_url_precedes_options_which_precede_the_environment() {
        let environment = [("PGHOST", "env"), ("PGPORT", "1"), ("PGUSER", "env"), ("PGDATABASE", "env")];
        let options = Address {
            host: Some("option".to_owned()),
            port: Some("2".to_owned()),
            user: Some("option".to_owned()),
            ..Address::default()
        };
        let config = resolve(&options, &environment).unwrap();
        assert_eq!(config.get_hosts(), [Host::Tcp("option".to_owned())]);
        assert_eq!(
            (config.get_ports(), config.get_user(), config.get_dbname()),
            (&[2][..], Some("option"), Some("env"))
        );
        let both = Address { database: Some("postgres://url@url:3/url".to_owned()), ..options };
        let config = resolve(&both, &environment).unwrap();
        assert_eq!(config.get_hosts(), [Host::Tcp("url".to_owned())]);
        assert_eq!((config.get_ports(), config.get_user(), config.get_dbname()), (&[3][..], Some("url"), Some("url")));
    }

    #[test]
    fn without_an_address_the_server_is_on_this_machine_and_the_database_has_the_users_name() {
        let config = resolve(&Address::default(), &[("USER", "me")]).unwrap();
        assert_eq!(config.get_hosts(), [Host::Tcp("localhost".to_owned())]);
        assert_eq!((config.get_user(), config.get_dbname()), (Some("me"), Some("me")));
    }

    #[test]
    fn several_hosts_have_their_ports() {
        let variables = [("PGHOST", "one,/run/two"), ("PGPORT", "1,2"), ("PGHOSTADDR", "127.0.0.1,::1")];
        let config = resolve(&Address::default(), &variables).unwrap();
        assert_eq!(config.get_hosts(), [Host::Tcp("one".to_owned()), Host::Unix("/run/two".into())]);
        assert_eq!((config.get_ports(), config.get_hostaddrs().len()), (&[1, 2][..], 2));
    }

    #[test]
    fn the_name_of_a_database_is_no_address() {
        let config = resolve(&of("shop"), &[("PGHOST", "/run/postgresql")]).unwrap();
        assert_eq!((config.get_dbname(), config.get_user()), (Some("shop"), Some("postgres")));
        assert_eq!(config.get_hosts(), [Host::Unix("/run/postgresql".into())]);
    }

    #[test]
    fn a_password_comes_from_the_url_or_the_environment() {
        let password = |address: &str, variables: &[(&str, &str)]| {
            resolve(&of(address), variables).unwrap().get_password().map(<[u8]>::to_vec)
        };
        let given = [("PGPASSWORD", "env")];
        assert_eq!(password("postgres://u:url@h/d", &given), Some(b"url".to_vec()));
        assert_eq!(password("postgres://u@h/d", &given), Some(b"env".to_vec()));
        assert_eq!(password("postgres://u@h/d", &[]), None);
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        let message =
            |address: &Address, variables: &[(&str, &str)]| format!("{:#}", resolve(address, variables).unwrap_err());
        assert!(message(&of("postgres://h:x/d"), &[]).contains("address of the server"));
        assert!(message(&of("postgres://h/d?sslmode=always"), &[]).contains("sslmode=always"));
        assert!(message(&of("postgres://h/d?ssl%6Dode=always"), &[]).contains("sslmode=always"));
        assert!(message(&of("password=postgres://x? sslmode=always"), &[]).contains("sslmode=always"));
        assert!(message(&Address::default(), &[("PGPORT", "high")]).contains("\"high\""));
        assert!(message(&Address::default(), &[("PGSERVICE", "shop")]).contains("PGSERVICE=shop"));
        assert!(message(&Address::default(), &[("PGHOSTADDR", "shop")]).contains("\"shop\" is no IP address"));
    }
}
