//! The parts of `PostgreSQL`'s protocol that the host reads and writes.
//!
//! * [`startup`]: the first packet of a connection
//! * `messages`: heads of messages, and answers to queries
//! * [`boundary`]: the places in a stream to a client where a message may begin
//! * [`error_response`]: errors in `PostgreSQL`'s form
//! * `end_point`: what passwords are bound to by TLS
//! * `hba`: rules of `pg_hba.conf` about certificates of clients

pub mod boundary;
pub(crate) mod end_point;
pub mod error_response;
pub(crate) mod hba;
pub(crate) mod messages;
pub mod startup;

#[cfg(test)]
mod tests;
