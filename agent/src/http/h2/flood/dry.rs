//! A connection without sockets: what the fuzz targets and their stable twin feed bytes to.

use super::Guarded;
use crate::http::Limits;

/// Whether what a caller sends after the preface, in pieces of `step`, stays within the budget of its connection.
pub fn within_budget(bytes: &[u8], step: usize) -> bool {
    // None is earned back: else it would depend on time.
    let limits = Limits { control_rate: 0, control_frames: 50, ..Limits::default() };
    let (mut guarded, _) = Guarded::new(tokio::io::empty(), &limits);
    guarded.skip = 0;
    bytes.chunks(step.max(1)).all(|piece| guarded.look(piece))
}
