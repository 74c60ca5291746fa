//! The control plane of Outrider: it proves who workloads are and issues their certificates, keeps policies, and pushes each
//! agent its own view of the mesh.
//!
//! Two pages tell the whole: `issue.rs` (attest → ca → certificate) and `publish.rs` (watch → registry → compile → push).
//! [`ControlPlane::start`] is the way in for the binary, for `outrider up` and for tests.

mod api;
mod app;
mod attest;
mod ca;
mod clock;
mod compile;
pub mod config;
mod issue;
mod jwt;
mod limit;
mod metrics;
mod operators;
mod peer;
mod publish;
mod push;
mod record;
mod registry;
mod rotate;
mod store;
mod turns;
mod upkeep;

pub use app::{ControlPlane, Running, StartError};
pub use ca::CaFiles;
#[cfg(feature = "bench")]
pub use ca::leaves_per_second;
pub use config::{Config, ConfigErrors, Environment, KeySource, Raw};
pub use outrider_runtime::unix_socket::SocketError;
pub use store::{Backend, DirError, KeyError, MigrateError, Moved, OpenError, Place, PostgresUrl, migrate};
