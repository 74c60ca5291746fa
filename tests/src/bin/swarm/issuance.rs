//! Renewals as fast as they are issued: each connection asks again as soon as it was answered.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use outrider_proto::v1::identity_client::IdentityClient;
use rcgen::KeyPair;
use tokio::task::JoinSet;
use tonic::{Code, transport::Channel};

use crate::door::{Door, renewal, signing_request};

/// Signing requests prepared for each connection: making keys is not what is measured.
const PREPARED: usize = 64;

/// What one connection saw.
#[derive(Debug)]
struct Seen {
    latency: Histogram<u64>,
    limited: u64,
}

/// Asks for `duration` over one connection an identity. Renewals that were limited by identity are counted apart.
pub(crate) async fn run(door: &Door, identities: usize, depth: usize, duration: Duration) -> anyhow::Result<serde_json::Value> {
    let mut connections = Vec::with_capacity(identities);
    for number in 0..identities {
        let name = format!("swarm/renewer-{number}");
        let identity = door.join(&name, &name).await?;
        connections.push(door.connect(Some(identity)).await?);
    }
    let keys: Vec<KeyPair> = (0..PREPARED).map(|_| KeyPair::generate()).collect::<Result<_, _>>()?;
    let requests: Vec<Vec<u8>> = keys.iter().map(signing_request).collect::<anyhow::Result<_>>()?;
    let begun = Instant::now();
    let until = begun + duration;
    let mut running = JoinSet::new();
    for connection in connections {
        for _ in 0..depth {
            running.spawn(renew(connection.clone(), requests.clone(), until));
        }
    }
    let mut all = Seen { latency: Histogram::new_with_bounds(1, 60_000_000, 3)?, limited: 0 };
    while let Some(seen) = running.join_next().await {
        let seen = seen.context("a connection panicked")??;
        all.latency.add(&seen.latency)?;
        all.limited += seen.limited;
    }
    Ok(serde_json::json!({
        "issued": all.latency.len(),
        "limited": all.limited,
        "seconds": begun.elapsed().as_secs_f64(),
        "p50_us": all.latency.value_at_quantile(0.50),
        "p99_us": all.latency.value_at_quantile(0.99),
    }))
}

async fn renew(connection: Channel, requests: Vec<Vec<u8>>, until: Instant) -> anyhow::Result<Seen> {
    let mut client = IdentityClient::new(connection);
    let mut seen = Seen { latency: Histogram::new_with_bounds(1, 60_000_000, 3)?, limited: 0 };
    for csr in requests.iter().cycle() {
        let begun = Instant::now();
        if begun >= until {
            break;
        }
        match client.issue(renewal(csr.clone())).await {
            Ok(_) => seen.latency.saturating_record(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)),
            Err(status) if status.code() == Code::ResourceExhausted => {
                seen.limited += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(status) => return Err(status).context("a renewal failed"),
        }
    }
    Ok(seen)
}
