//! What the sessions of one cluster share besides its files, as the processes of a `PostgreSQL` server do.
//!
//! * `signals`: signals from other threads to a backend
//! * `baton`: the turn to run wasm
//! * `preemption`: taking the turn from a process that does not check for interrupts
//! * `shared_memory`: memory that several sessions have mapped
//! * `seat`: a session's process id, turns and signals

mod baton;
mod preemption;
mod seat;
mod shared_memory;
mod signals;

pub(crate) use baton::{Baton, Priority, Slice};
pub(crate) use preemption::{Preemption, SafepointPage};
pub(crate) use seat::{Crashed, Seat, Seats};
pub(crate) use shared_memory::{MainSegment, Region, SharedMemory, clear_mapping, main_segment, map_zeros_over};
pub(crate) use signals::{Signal, Signals};
