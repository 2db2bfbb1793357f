//! Helpers of the benchmarks.

// Every benchmark compiles this file, and none uses all of it.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod conversation;
pub mod node;
pub mod rows;
pub mod samples;
pub mod wire;
