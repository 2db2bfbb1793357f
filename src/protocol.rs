//! `PostgreSQL`'s protocol, as far as the host reads and writes it.
//!
//! * [`startup`]: the first packet of a connection
//! * `messages`: heads of messages, and what answers a query
//! * [`boundary`]: where in a stream to a client a message may begin
//! * [`error_response`]: errors as `PostgreSQL` tells them to its client

pub mod boundary;
pub mod error_response;
pub(crate) mod messages;
pub mod startup;
