//! What must be done from time to time: renew our own certificates, and keep the store from growing.

use std::{sync::Arc, time::Duration};

use outrider_runtime::{Drain, Gate};
use tokio::time::{Instant, interval};

use crate::{
    attest::Attested,
    ca::{Authority, CaError, ServerLeaf},
    clock,
    issue::Issuance,
    jwt::JwtKeys,
    metrics::Metrics,
    operators::Roster,
    store::{DECISIONS_BYTES, DECISIONS_KEPT, Lease, Redeem, Store, StoreError},
};

/// How often renewal points are looked at: the shortest leaf lives two seconds.
const RENEWAL: Duration = Duration::from_millis(250);
/// How often a replica says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A store that has not answered for this long is not there.
const SILENCE: Duration = Duration::from_secs(3);
/// How often a lease is prolonged.
const HOLD: Duration = Duration::from_secs(2);
/// How long a lease outlives its holder.
const LEASE: Duration = Duration::from_secs(8);
/// How often the store is pruned.
const PRUNE: Duration = Duration::from_secs(10);
/// Certificates and agents are kept this long after their end.
const KEPT: i64 = 86_400;

/// Renews the issuing CA and our own leaf at their renewal points. A failure is tried again: what is in use still is.
pub(crate) async fn renew(issuance: Issuance, leaf: Arc<ServerLeaf>, drain: Drain) -> Result<(), std::convert::Infallible> {
    let mut tick = interval(RENEWAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut failing = false;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = drain.stopping() => return Ok(()),
        }
        let renewed = renew_once(&issuance, &leaf, clock::now()).await;
        if let Err(error) = &renewed
            && !failing
        {
            tracing::error!(error = outrider_runtime::tasks::chain(error), "own certificates not renewed, trying again");
        }
        failing = renewed.is_err();
    }
}

async fn renew_once(issuance: &Issuance, leaf: &ServerLeaf, now: i64) -> Result<(), CaError> {
    issuance.authority.refresh(now).await?;
    for new in leaf.renew(&issuance.authority, now)? {
        let own = Attested { identity: leaf.identity().clone(), evidence: "self", redeem: Redeem::Nothing };
        if let Err(error) = issuance.record(&new, &own, now).await {
            tracing::warn!(error = outrider_runtime::tasks::chain(&error), "own certificate not recorded");
        }
    }
    issuance.metrics.mounted_refused.set(issuance.authority.refused_files().is_some().into());
    issuance.metrics.leaf_ends.set(leaf.not_after());
    set_ends(&issuance.authority, &issuance.metrics);
    Ok(())
}

fn set_ends(authority: &Authority, metrics: &crate::metrics::Metrics) {
    if let Some(issuing) = authority.describe().iter().find(|ca| ca.signs && ca.role != "root") {
        metrics.issuing_ends.set(issuing.not_after);
    }
}

/// Makes keys for tokens before they are due, takes those that other replicas made, and forgets old ones.
pub(crate) async fn renew_jwt_keys(keys: Arc<JwtKeys>, drain: Drain) -> Result<(), std::convert::Infallible> {
    let mut tick = interval(HEARTBEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut failing = false;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = drain.stopping() => return Ok(()),
        }
        let renewed = keys.renew(clock::now()).await;
        if let Err(error) = &renewed
            && !failing
        {
            tracing::error!(error = outrider_runtime::tasks::chain(error), "keys for tokens not renewed, trying again");
        }
        failing = renewed.is_err();
    }
}

/// Looks who is an operator: another replica may have removed one, whose connections here must end.
pub(crate) async fn look_at_operators(roster: Roster, drain: Drain) -> Result<(), std::convert::Infallible> {
    let mut tick = interval(HEARTBEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = drain.stopping() => return Ok(()),
        }
        if let Err(error) = roster.refresh().await {
            tracing::debug!(error = outrider_runtime::tasks::chain(&error), "operators not looked at, trying again");
        }
    }
}

/// Says that this replica lives, and looks after the way to the store: without one it is not ready, whatever it still serves.
pub(crate) async fn live(
    store: Store,
    metrics: Metrics,
    address: String,
    gate: Gate,
    drain: Drain,
) -> Result<(), std::convert::Infallible> {
    // Where nobody else counts on it, the disk is spared.
    let mut tick = interval(if store.is_shared() { HEARTBEAT } else { HEARTBEAT * 2 });
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut failing = false;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = drain.stopping() => return Ok(()),
        }
        let said = heard(live_once(&store, &metrics, &address), &gate).await;
        match &said {
            Ok(()) => gate.open(),
            Err(StoreError::Gone) => gate.close_because("its file is gone"),
            Err(_) => gate.close_because("it does not take what is to be stored"),
        }
        if let Err(error) = &said {
            if !failing {
                tracing::error!(error = outrider_runtime::tasks::chain(error), "the store does not answer, trying again");
            }
            store.follow().await;
        } else if failing {
            tracing::info!("the store answers again");
        }
        failing = said.is_err();
    }
}

/// What the store says in the end. When that takes long, it is said meanwhile.
async fn heard<T>(asked: impl Future<Output = T>, gate: &Gate) -> T {
    let mut asked = std::pin::pin!(asked);
    match tokio::time::timeout(SILENCE, &mut asked).await {
        Ok(said) => said,
        Err(_) => {
            gate.close_because("it does not answer");
            asked.await
        }
    }
}

async fn live_once(store: &Store, metrics: &Metrics, address: &str) -> Result<(), StoreError> {
    store.is_there()?;
    if !store.heartbeat(address).await? {
        tracing::error!(replica = store.replica(), "another control plane runs under the name of this replica");
    }
    let live = store.replicas().await?.iter().filter(|replica| replica.is_live()).count();
    metrics.replicas.set(i64::try_from(live).unwrap_or(i64::MAX));
    Ok(())
}

/// Keeps the store small. Of several replicas one does it: the one that holds the lease.
pub(crate) async fn prune(issuance: Issuance, drain: Drain) -> Result<(), std::convert::Infallible> {
    let mut tick = interval(HOLD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let (mut held, mut due) = (None, Instant::now());
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = drain.stopping() => break,
        }
        let pruned = async {
            // Where there is nobody else, what is held stays held.
            if held.is_none() || issuance.store.is_shared() {
                held = issuance.store.take_lease("prune", LEASE).await?;
                issuance.metrics.lease_held("prune", held.is_some());
            }
            match &held {
                Some(lease) if due <= Instant::now() => {
                    due = Instant::now() + PRUNE;
                    prune_once(&issuance.store, lease).await
                }
                _ => Ok(()),
            }
        };
        if let Err(error) = pruned.await {
            issuance.metrics.store_errors.inc();
            tracing::warn!(error = outrider_runtime::tasks::chain(&error), "store not pruned, trying again");
        }
    }
    if let Some(lease) = held {
        // Another replica need not wait for its end. When this fails, it waits.
        drop(issuance.store.release_lease(lease).await);
    }
    Ok(())
}

async fn prune_once(store: &Store, lease: &Lease) -> Result<(), StoreError> {
    let before = clock::now() - KEPT;
    store.prune_decisions(lease, DECISIONS_KEPT, DECISIONS_BYTES).await?;
    store.prune_certificates(lease, before).await?;
    store.prune_agents(lease, before).await?;
    store.prune_handovers(lease, before).await?;
    if store.is_shared() {
        store.forget_sessions_of_the_dead(lease).await?;
    }
    Ok(())
}
