//! `ErrorResponse`: errors in PostgreSQL's form, for when no backend can report them.

use std::{fmt, io};

use crate::fs::Errno;

/// The SQLSTATE codes that the host itself reports (PostgreSQL manual, appendix A).
pub mod sqlstate {
    /// `successful_completion`
    pub const SUCCESSFUL_COMPLETION: &str = "00000";
    /// `connection_does_not_exist`
    pub const CONNECTION_DOES_NOT_EXIST: &str = "08003";
    /// `protocol_violation`
    pub const PROTOCOL_VIOLATION: &str = "08P01";
    /// `feature_not_supported`
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    /// `datetime_field_overflow`
    pub const DATETIME_FIELD_OVERFLOW: &str = "22008";
    /// `invalid_parameter_value`
    pub const INVALID_PARAMETER_VALUE: &str = "22023";
    /// `invalid_authorization_specification`
    pub const INVALID_AUTHORIZATION_SPECIFICATION: &str = "28000";
    /// `insufficient_resources`
    pub const INSUFFICIENT_RESOURCES: &str = "53000";
    /// `out_of_memory`
    pub const OUT_OF_MEMORY: &str = "53200";
    /// A file cannot grow.
    pub const DISK_FULL: &str = "53100";
    /// `invalid_catalog_name`
    pub const INVALID_CATALOG_NAME: &str = "3D000";
    /// `character_not_in_repertoire`
    pub const CHARACTER_NOT_IN_REPERTOIRE: &str = "22021";
    /// `untranslatable_character`
    pub const UNTRANSLATABLE_CHARACTER: &str = "22P05";
    /// `query_canceled`, which PostgreSQL also reports when `authentication_timeout` has passed
    pub const QUERY_CANCELED: &str = "57014";
    /// `insufficient_privilege`
    pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
    /// `too_many_connections`
    pub const TOO_MANY_CONNECTIONS: &str = "53300";
    /// `object_not_in_prerequisite_state`
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
    /// `object_in_use`
    pub const OBJECT_IN_USE: &str = "55006";
    /// `duplicate_object`
    pub const DUPLICATE_OBJECT: &str = "42710";
    /// `undefined_object`
    pub const UNDEFINED_OBJECT: &str = "42704";
    /// `undefined_file`
    pub const UNDEFINED_FILE: &str = "58P01";
    /// `io_error`
    pub const IO_ERROR: &str = "58030";
    /// `admin_shutdown`
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    /// `lock_not_available`
    pub const LOCK_NOT_AVAILABLE: &str = "55P03";
    /// `crash_shutdown`
    pub const CRASH_SHUTDOWN: &str = "57P02";
    /// `cannot_connect_now`
    pub const CANNOT_CONNECT_NOW: &str = "57P03";
    /// `internal_error`
    pub const INTERNAL_ERROR: &str = "XX000";
    /// Stored data is damaged.
    pub const DATA_CORRUPTED: &str = "XX001";
}

/// The severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The session ends.
    Fatal,
    /// The session continues.
    Error,
    /// Only for the log and the parent: the end is in order, or the client does not speak the protocol.
    Log,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fatal => "FATAL",
            Self::Error => "ERROR",
            Self::Log => "LOG",
        })
    }
}

/// An error report with the fields that the host uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    /// The severity.
    pub severity: Severity,
    /// The SQLSTATE, five characters; see [`sqlstate`].
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ErrorResponse {
    /// A report that ends the session.
    pub fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Fatal, code, message: message.into(), hint: None }
    }

    /// A report of a failure that ends nothing.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), hint: None }
    }

    /// A report that the client does not get.
    pub fn log(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Log, code, message: message.into(), hint: None }
    }

    /// The error of a session that was told to end.
    pub(crate) fn terminated() -> Self {
        Self::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
    }

    /// The refusal of a client while its cluster starts, in `PostgreSQL`'s words (`ProcessStartupPacket` in
    /// `src/backend/tcop/backend_startup.c`).
    #[must_use]
    pub fn starting_up() -> Self {
        Self::fatal(sqlstate::CANNOT_CONNECT_NOW, "the database system is starting up")
    }

    /// The refusal to make a template of a database while its connection has an open transaction.
    #[must_use]
    pub fn freeze_in_transaction() -> Self {
        let message = "the database cannot be frozen while a transaction is open on its connection; end it first";
        Self::error(sqlstate::OBJECT_IN_USE, message)
    }

    /// The same report with a hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The wire-protocol message (PostgreSQL manual, "Message Formats" and "Error and Notice Message Fields").
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let severity = self.severity.to_string();
        let mut fields = vec![(b'S', severity.as_str()), (b'V', &severity), (b'C', self.code), (b'M', &self.message)];
        fields.extend(self.hint.as_deref().map(|hint| (b'H', hint)));
        let mut body = Vec::new();
        for (field, text) in fields {
            body.push(field);
            body.extend(text.bytes().filter(|&byte| byte != 0));
            body.push(0);
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
        [&b"E"[..], &length.to_be_bytes(), &body].concat()
    }
}

impl From<anyhow::Error> for ErrorResponse {
    /// An error in the program itself, or of a system that has nothing more to give.
    fn from(error: anyhow::Error) -> Self {
        match error.chain().find_map(|cause| Some((shortage(cause)?, cause))) {
            Some(((what, limit), cause)) => {
                let report = Self::error(sqlstate::INSUFFICIENT_RESOURCES, format!("out of {what}: {cause}"));
                report.with_hint(format!("End sessions, drop clusters, or raise {limit}."))
            }
            None => Self::error(sqlstate::INTERNAL_ERROR, format!("{error:#}")),
        }
    }
}

/// What the system lacks, and the limit that stands against it, if that is the cause of an error.
fn shortage(cause: &(dyn std::error::Error + 'static)) -> Option<(&'static str, &'static str)> {
    const FILES: (&str, &str) = ("file descriptors", "the limits of open files (ulimit -n, sysctl fs.file-max)");
    const MEMORY: (&str, &str) =
        ("memory", "the limits of memory (--memory-limit, ulimit -v) and of memory mappings (sysctl vm.max_map_count)");
    const THREADS: (&str, &str) = ("threads", "the limits of processes (ulimit -u, sysctl kernel.threads-max)");
    if let Some(error) = cause.downcast_ref::<Errno>() {
        return match *error {
            Errno::EMFILE | Errno::ENFILE => Some(FILES),
            Errno::ENOMEM => Some(MEMORY),
            _ => None,
        };
    }
    let error = match cause.downcast_ref::<io::Error>() {
        Some(error) => rustix::io::Errno::from_io_error(error)?,
        None => *cause.downcast_ref::<rustix::io::Errno>()?,
    };
    match error {
        rustix::io::Errno::MFILE | rustix::io::Errno::NFILE => Some(FILES),
        rustix::io::Errno::NOMEM => Some(MEMORY),
        // Of a new thread; files and sockets that would block are none of these errors.
        rustix::io::Errno::AGAIN => Some(THREADS),
        _ => None,
    }
}

impl fmt::Display for ErrorResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_laid_out_as_the_manual_says() {
        let report = ErrorResponse::fatal(sqlstate::CANNOT_CONNECT_NOW, "no");
        assert_eq!(report.encode(), b"E\0\0\0\x1eSFATAL\0VFATAL\0C57P03\0Mno\0\0");
        let hinted = report.with_hint("wait").encode();
        assert!(hinted.ends_with(b"Mno\0Hwait\0\0"));
        assert_eq!(hinted[1..5], u32::to_be_bytes(u32::try_from(hinted.len() - 1).expect("short")));
    }

    #[test]
    fn a_nul_in_a_text_cannot_forge_a_field() {
        let message = ErrorResponse::error(sqlstate::INTERNAL_ERROR, "a\0C00000").encode();
        assert!(message.ends_with(b"MaC00000\0\0"));
    }
}
