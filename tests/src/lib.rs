//! The harness: a mesh of the real binaries on loopback, a backend that records what it saw, and clients that speak raw bytes.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a harness fails by panicking"
)]

mod backend;
mod certificates;
mod collector;
mod eager;
mod files;
mod flooded;
pub mod floods;
mod frames;
mod image;
mod join;
mod large;
mod mesh;
mod postgres;
mod process;
mod python;
mod raw;
mod relay;
pub mod soak;
mod space;
mod tmpfs;

pub use backend::{Backend, Seen};
pub use certificates::{Authority, Identity, careless_client, careless_server, good_leaf, tls12_hello};
pub use collector::{CollectedSpan, Collector};
pub use eager::{Eager, Heard};
pub use files::{free_port, program};
pub use flooded::{Flooded, Ridden, Waited, Way};
pub use frames::{Ends, H2Answer, h2_answer, h2_block, h2_body, h2_data, h2_frame, h2_head, h2_headers, h2_opening, h2_request};
pub use image::Image;
pub use join::{join, join_over, to_control_plane};
pub use large::large;
pub use mesh::{AgentOptions, AgentProcess, Mesh, MeshOptions, allow};
pub use postgres::{Cluster, Disk};
pub use process::Process;
pub use python::{interpreter, python, script_path};
pub use raw::{Answer, MeshPeer, exchange, get, read_answer, through_proxy};
pub use relay::Relay;
pub use space::{Space, Spaces};
pub use tmpfs::Tmpfs;

/// Waits until something holds.
///
/// # Panics
/// When it does not within 10 s.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// What a test returns: any error fails it.
pub type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;
