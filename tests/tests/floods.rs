//! Floods: frames that cost an agent much and their sender nothing, over HTTP/2 in plaintext and on the mesh port, and by the mesh
//! protocol. Each ends its own connection, or stays without consequence; the agent does not grow, and a neighbour is served.

#![expect(clippy::print_stdout, reason = "a test says what it saw")]

use std::time::Duration;

use outrider_tests::{
    Flooded, Outcome, Way,
    floods::{End, Flood, over_http2, over_mesh},
};

/// How much an agent may hold more than before, in KiB.
const GROWTH: u64 = 10 << 10;

/// Each flood, with the neighbour asking meanwhile.
async fn withstands(floods: &[Flood], way: Way) {
    let flooded = Flooded::start().await;
    for flood in floods {
        let what = format!("{} ({})", flood.name, way.as_str());
        let ridden = flooded.ride(flood, way).await;
        let slowest = ridden.waited.neighbour.iter().max().copied().unwrap_or_default();
        println!(
            "{what}: closed {} after {} frames, slowest {slowest:?}, grew {} KiB",
            ridden.closed, ridden.frames, ridden.grown
        );
        assert!(ridden.closed || flood.end == End::Bounded, "{what}: all was taken");
        assert!(slowest < Duration::from_secs(2), "{what}: the neighbour waited {slowest:?}");
        assert!(ridden.grown <= GROWTH, "{what}: the agent grew by {} KiB", ridden.grown);
    }
}

#[tokio::test]
async fn floods_over_http2_in_plaintext_end_themselves_and_nobody_else_notices() -> Outcome {
    withstands(&over_http2(), Way::Plaintext).await;
    Ok(())
}

#[tokio::test]
async fn floods_over_http2_from_a_member_end_themselves_and_nobody_else_notices() -> Outcome {
    withstands(&over_http2(), Way::Http2).await;
    Ok(())
}

#[tokio::test]
async fn floods_by_the_mesh_protocol_end_themselves_and_nobody_else_notices() -> Outcome {
    withstands(&over_mesh(), Way::Mesh).await;
    Ok(())
}
