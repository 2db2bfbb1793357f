//! What the sessions of one cluster share besides its files, as the processes of a `PostgreSQL` server do.
//!
//! * `signals`: what other threads tell a backend
//! * `baton`: whose turn it is to run wasm
//! * `shared_memory`: the same memory in several of them
//! * `seat`: one session's part in all of this

mod baton;
mod seat;
mod shared_memory;
mod signals;

pub(crate) use baton::{Baton, Priority};
pub(crate) use seat::{Crashed, Seat, Seats};
pub(crate) use shared_memory::{Region, SharedMemory, find_main_segment, map_zeros_over};
pub(crate) use signals::{Signal, Signals};
