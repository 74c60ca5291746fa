//! The stream from the control plane: hello, updates put in force and acknowledged, and what is asked of this agent.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use outrider_policy::ServiceName;
use outrider_proto::v1::{
    Ack, Goodbye, Hello, IdentityStatus, Nack, ServiceBacking, SubscribeRequest, SubscribeResponse, Update, WantServices,
    config_client::ConfigClient, subscribe_request::Message as Out, subscribe_response::Message as In,
};
use outrider_runtime::{Drain, Gate};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{ControlPlane, SealedFile, View, channel::ControlPlaneError};
use crate::{
    identity::{Svid, Svids, retry_after},
    policy::PolicyBook,
    route::Directory,
    telemetry::Metrics,
    tls::Trust,
    workload::JwtKeys,
};

/// Largest update taken.
const UPDATE: usize = 64 << 20;

/// The stream broke.
#[derive(Debug, thiserror::Error)]
pub enum SubscriptionError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ControlPlaneError),
    /// The control plane ended it.
    #[error("the control plane ended the stream: {0}")]
    Ended(String),
}

/// Keeps this agent's view current.
#[derive(Debug)]
pub struct Subscription {
    /// Where the control plane is.
    pub control_plane: ControlPlane,
    /// This agent's id.
    pub agent_id: String,
    /// Services this agent backs.
    pub services: Vec<ServiceBacking>,
    /// The view so far.
    pub view: View,
    /// Where the last good view is kept.
    pub snapshot: SealedFile,
    /// What updates change.
    pub trust: Arc<Trust>,
    /// What updates change.
    pub policies: Arc<PolicyBook>,
    /// What updates change, and who asks for services.
    pub directory: Arc<Directory>,
    /// What updates change.
    pub jwt_keys: Arc<JwtKeys>,
    /// The own certificate.
    pub svids: Arc<Svids>,
    /// Woken when the control plane asks for a renewal.
    pub renew: Arc<Notify>,
    /// Open once a complete view is in force.
    pub ready: Gate,
    /// Metrics.
    pub metrics: Metrics,
    /// Ends the stream in good order.
    pub drain: Drain,
}

struct Stream {
    out: mpsc::Sender<SubscribeRequest>,
    updates: Streaming<SubscribeResponse>,
}

impl Stream {
    async fn send(&self, message: Out) -> Result<(), SubscriptionError> {
        let sent = self.out.send(SubscribeRequest { message: Some(message) }).await;
        sent.map_err(|_| SubscriptionError::Ended("it no longer listens".to_owned()))
    }
}

impl Subscription {
    /// Runs until drain. Without a control plane the last good view stays in force.
    ///
    /// # Errors
    /// None: a lost stream is opened again.
    pub async fn run(mut self) -> Result<(), SubscriptionError> {
        let drain = self.drain.clone();
        let mut changes = self.svids.changes();
        let mut failures = 0;
        // The stream before: it stays until the next one is open, so that the agent is connected all the time.
        let mut before = None;
        while !drain.is_stopping() {
            changes.mark_unchanged();
            let outcome = match self.open().await {
                Ok(mut stream) => {
                    failures = 0;
                    drop(before.take());
                    self.metrics.control_plane_connected.set(1);
                    let outcome = self.follow(&mut stream, &mut changes).await;
                    if outcome.is_ok() {
                        before = Some(stream);
                    }
                    self.metrics.control_plane_connected.set(0);
                    outcome
                }
                Err(error) => Err(error),
            };
            let Err(error) = outcome else { continue };
            before = None;
            self.control_plane.unshare();
            self.control_plane.turn_away();
            failures += 1;
            let pause = retry_after(failures, fastrand::f64());
            tracing::warn!(%error, retry_in = ?pause, "no stream from the control plane: the last good view stays in force");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = drain.stopping() => {}
            }
        }
        Ok(())
    }

    async fn open(&self) -> Result<Stream, SubscriptionError> {
        let channel = self.control_plane.connect_and_share().await?;
        let (out, requests) = mpsc::channel(16);
        let stream = Stream { out: out.clone(), updates: self.subscribe(channel, out, requests).await? };
        Ok(stream)
    }

    async fn subscribe(
        &self,
        channel: tonic::transport::Channel,
        out: mpsc::Sender<SubscribeRequest>,
        requests: mpsc::Receiver<SubscribeRequest>,
    ) -> Result<Streaming<SubscribeResponse>, SubscriptionError> {
        let ended = |status: tonic::Status| self.ended(&status);
        let hello = Hello {
            agent_id: self.agent_id.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: [
                "ServicePolicy/v1alpha1",
                "HTTPRoute/v1",
                "GRPCRoute/v1",
                "Service",
                "TrustBundle",
                "Revocations",
                "JwtBundle",
            ]
            .map(str::to_owned)
            .to_vec(),
            services: self.services.clone(),
            known: self.view.known(),
            want: Some(want(&self.directory.wanted().borrow())),
            identity: self.svids.latest().map(|svid| status(&svid)),
        };
        // The channel is empty: there is room.
        let _ = out.send(SubscribeRequest { message: Some(Out::Hello(hello)) }).await;
        let mut client = ConfigClient::new(channel).max_decoding_message_size(UPDATE);
        let answer = client.subscribe(ReceiverStream::new(requests)).await.map_err(ended)?;
        Ok(answer.into_inner())
    }

    /// Takes note of why a stream ended: one whose identity was revoked hears it from nobody but the control plane, in the
    /// stream or in the handshake.
    fn ended(&self, status: &tonic::Status) -> SubscriptionError {
        let said = status.code() == tonic::Code::PermissionDenied && status.message() == "revoked";
        if said || outrider_runtime::tasks::chain(status).contains("CertificateRevoked") {
            tracing::error!("our identity was revoked: it is given to no program any more");
            self.trust.disown(true);
        }
        SubscriptionError::Ended(format!("{:?}: {}", status.code(), status.message()))
    }

    /// Follows one stream. `Ok` when it should be opened again at once, or the agent leaves.
    async fn follow(&mut self, stream: &mut Stream, renewed: &mut watch::Receiver<u64>) -> Result<(), SubscriptionError> {
        let drain = self.drain.clone();
        let mut wanted = self.directory.wanted();
        wanted.mark_changed();
        loop {
            tokio::select! {
                message = stream.updates.message() => match message {
                    Ok(Some(SubscribeResponse { message: Some(message) })) => self.obey(message, stream).await?,
                    Ok(Some(SubscribeResponse { message: None })) => {}
                    Ok(None) => return Err(SubscriptionError::Ended("closed".to_owned())),
                    Err(status) => return Err(self.ended(&status)),
                },
                Ok(()) = wanted.changed() => {
                    let names = want(&wanted.borrow_and_update());
                    stream.send(Out::Want(names)).await?;
                }
                // A stream proves what its certificate proved: after a renewal it is opened anew with the new one.
                Ok(()) = renewed.changed() => {
                    if let Some(svid) = self.svids.latest() {
                        stream.send(Out::Identity(status(&svid))).await?;
                    }
                    return Ok(());
                }
                () = drain.stopping() => {
                    // A successor serves the same endpoints.
                    if drain.is_succeeded() {
                        return Ok(());
                    }
                    stream.send(Out::Goodbye(Goodbye {})).await?;
                    // The control plane closes the stream once it has taken our endpoints out.
                    let _ = tokio::time::timeout(Duration::from_secs(1), async { while let Ok(Some(_)) = stream.updates.message().await {} }).await;
                    return Ok(());
                }
            }
        }
    }

    async fn obey(&mut self, message: In, stream: &Stream) -> Result<(), SubscriptionError> {
        match message {
            In::Update(update) => {
                let (nonce, revision) = (update.nonce, update.revision);
                match self.put_in_force(&update) {
                    Ok(()) => stream.send(Out::Ack(Ack { nonce, revision })).await,
                    Err(reason) => {
                        tracing::error!(revision, reason, "update refused: what was in force before still is");
                        stream.send(Out::Nack(Nack { nonce, revision, reason })).await
                    }
                }
            }
            In::RenewIdentity(_) => {
                tracing::info!("the control plane asks for a renewal of the certificate");
                self.renew.notify_one();
                Ok(())
            }
        }
    }

    fn put_in_force(&mut self, update: &Update) -> Result<(), String> {
        let next = self.view.after(update);
        next.put_in_force(&self.trust, &self.policies, &self.directory, &self.jwt_keys)
            .map_err(|error| outrider_runtime::tasks::chain(&error))?;
        // In force already; a snapshot that cannot be kept is a risk at the next restart, not now.
        if let Err(error) = self.snapshot.write(&next.encode()) {
            tracing::error!(%error, "the last good view could not be kept");
        }
        tracing::info!(
            revision = next.revision(),
            changed = update.upserts.len(),
            removed = update.removals.len(),
            "view in force"
        );
        // Who is revoked gets no updates.
        self.trust.disown(false);
        self.metrics.revision.set(i64::try_from(next.revision()).unwrap_or(i64::MAX));
        self.view = next;
        if update.complete {
            self.ready.open();
        }
        Ok(())
    }
}

fn want(names: &BTreeSet<ServiceName>) -> WantServices {
    WantServices { services: names.iter().map(ToString::to_string).collect() }
}

fn status(svid: &Svid) -> IdentityStatus {
    let seconds = |time: std::time::SystemTime| {
        i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
    };
    IdentityStatus {
        identity: svid.leaf.id.to_string(),
        serial: svid.leaf.serial.clone(),
        not_before: seconds(svid.leaf.not_before),
        not_after: seconds(svid.leaf.not_after),
    }
}
