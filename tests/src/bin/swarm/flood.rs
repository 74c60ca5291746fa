//! What a flood from one identity costs another: its renewals are timed alone, and beside the flood.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use outrider_proto::v1::identity_client::IdentityClient;
use rcgen::KeyPair;
use tokio::{task::JoinSet, time::interval};
use tonic::{Code, transport::Channel};

use crate::door::{Door, renewal, signing_request};

/// Pause between two renewals of the calm identity: half of what one identity may ask for.
const CALM: Duration = Duration::from_millis(40);
/// Connections of the loud one.
const CONNECTIONS: usize = 10;
/// Pause between two of its renewals on each of them: a thousand a second in all, twenty times what it may.
const LOUD: Duration = Duration::from_millis(10);

/// Times the calm identity for `duration` without and with the flood, in turns.
pub(crate) async fn run(door: &Door, duration: Duration) -> anyhow::Result<serde_json::Value> {
    let calm = door.connect(Some(door.join("swarm/calm", "swarm/calm").await?)).await?;
    let loud = door.join("swarm/loud", "swarm/loud").await?;
    let csr = signing_request(&KeyPair::generate()?)?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(door.connect(Some(loud.clone())).await?);
    }
    let mut times = [Histogram::new_with_bounds(1, 60_000_000, 3)?, Histogram::new_with_bounds(1, 60_000_000, 3)?];
    let (mut asked, mut issued) = (0, 0);
    // Both see the same machine, however busy it is.
    for _ in 0..4 {
        let [alone, beside] = &mut times;
        watch(&calm, &csr, alone, duration / 8).await?;
        let until = Instant::now() + duration / 8;
        let mut flood = JoinSet::new();
        for connection in &connections {
            flood.spawn(press(connection.clone(), csr.clone(), until));
        }
        watch(&calm, &csr, beside, duration / 8).await?;
        while let Some(counts) = flood.join_next().await {
            let (more_asked, more_issued) = counts.context("the flood panicked")??;
            (asked, issued) = (asked + more_asked, issued + more_issued);
        }
    }
    let [alone, beside] = times;
    Ok(serde_json::json!({
        "asked": asked,
        "issued": issued,
        "alone_p50_us": alone.value_at_quantile(0.50),
        "alone_p99_us": alone.value_at_quantile(0.99),
        "beside_p50_us": beside.value_at_quantile(0.50),
        "beside_p99_us": beside.value_at_quantile(0.99),
    }))
}

async fn watch(calm: &Channel, csr: &[u8], times: &mut Histogram<u64>, duration: Duration) -> anyhow::Result<()> {
    let mut client = IdentityClient::new(calm.clone());
    let (mut tick, until) = (interval(CALM), Instant::now() + duration);
    while Instant::now() < until {
        tick.tick().await;
        let begun = Instant::now();
        client.issue(renewal(csr.to_vec())).await.context("a calm renewal failed")?;
        times.saturating_record(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX).max(1));
    }
    Ok(())
}

async fn press(connection: Channel, csr: Vec<u8>, until: Instant) -> anyhow::Result<(u64, u64)> {
    let mut client = IdentityClient::new(connection);
    let (mut asked, mut issued, mut tick) = (0, 0, interval(LOUD));
    while Instant::now() < until {
        tick.tick().await;
        asked += 1;
        match client.issue(renewal(csr.clone())).await {
            Ok(_) => issued += 1,
            Err(status) if status.code() == Code::ResourceExhausted => {}
            Err(status) => return Err(status).context("a loud renewal failed"),
        }
    }
    Ok((asked, issued))
}
