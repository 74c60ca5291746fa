//! The Outrider agent: it runs beside a service, proves who the service is, speaks mutual TLS to every other agent, and
//! decides every request by policy.
//!
//! A call's way is told by two pages: `inbound.rs` and `outbound.rs`. The modules they use, in order of travel:
//! [`listener`], [`tls`], [`identity`], [`policy`], [`route`], [`upstream`].

mod alarm;
mod apart;
mod app;
pub mod capture;
pub mod config;
pub mod dns;
pub mod handover;
mod hex;
pub mod http;
pub mod identity;
mod inbound;
pub mod listener;
pub mod mesh;
mod outbound;
pub mod policy;
pub mod refusal;
pub mod route;
mod scan;
mod spare;
pub mod tcp;
pub mod telemetry;
pub mod tls;
mod turn;
pub mod upstream;
mod worker;
pub mod workload;

pub use app::{Agent, StartError};
pub use config::{Config, ConfigProblems, Settings, StateDir, StateDirError};
