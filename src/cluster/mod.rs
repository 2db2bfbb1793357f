//! What the sessions of one cluster share besides its files, as the processes of a `PostgreSQL` server do.
//!
//! * `slice`: how long turns are
//! * `signals`: signals from other threads to a backend
//! * `alarm`: deadlines of timers, and of signals that were not heard
//! * `baton`: the turn to run wasm
//! * `preemption`: taking the turn from a process that does not check for interrupts
//! * `shared_memory`: memory that several sessions have mapped
//! * `main_segment`: its contents in a snapshot, and memory that clusters have left
//! * `seat`: a session's process id, turns and signals

pub(crate) mod alarm;
mod baton;
mod main_segment;
mod preemption;
mod seat;
mod shared_memory;
mod signals;
mod slice;

pub(crate) use baton::{Baton, Priority};
pub(crate) use main_segment::MainSegment;
pub(crate) use preemption::{Holds, KeepsLocks, Preemption, SafepointPage, processor_time};
pub(crate) use seat::{Crashed, Seat, Seats};
pub(crate) use shared_memory::{Region, SharedMemory, UNIT, clear_mapping, main_segment, map_zeros_over, whole_pages};
pub(crate) use signals::{Signal, Signals};
pub(crate) use slice::Slice;
