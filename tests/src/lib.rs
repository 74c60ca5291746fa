//! The harness: a mesh of the real binaries on loopback, a backend that records what it saw, and clients that speak raw bytes.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a harness fails by panicking"
)]

mod backend;
mod files;
mod mesh;
mod process;
mod raw;

pub use backend::{Backend, Seen};
pub use files::{free_port, program};
pub use mesh::{AgentOptions, AgentProcess, Mesh, MeshOptions, allow};
pub use process::Process;
pub use raw::{Answer, MeshPeer, exchange, get, read_answer, through_proxy};

/// What a test returns: any error fails it.
pub type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;
