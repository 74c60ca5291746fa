//! What both binaries need to run at all: named tasks, drain, readiness, health and metrics, logs, layered config.
//!
//! Nothing here knows about the mesh.

pub mod allocator;
pub mod config;
pub mod descriptors;
pub mod drain;
pub mod health;
pub mod readiness;
pub mod tasks;
pub mod telemetry;
pub mod unix_socket;

pub use drain::{Drain, Drained};
pub use readiness::{Gate, Readiness};
pub use tasks::{TaskFailed, Tasks};
