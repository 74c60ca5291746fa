//! What must hold for any bytes. `agent/tests/fuzzing.rs` runs the same checks on a stable compiler.

use outrider_agent::mesh::{Violation, digest};

/// Frames of the mesh protocol: the first byte says whose side reads them and how they are cut.
pub fn mesh(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let (step, callee) = (usize::from(first >> 1) + 1, first & 1 == 0);
    let (cut, whole) = (digest(bytes, step, callee), digest(bytes, bytes.len().max(1), callee));
    // A budget earns with time, so that only floods may be judged in two ways.
    assert!(cut == whole || [cut, whole].contains(&Err(Violation::Flood)), "{cut:?} {whole:?}");
}
