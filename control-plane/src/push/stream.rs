//! One agent's stream: from its hello until either side leaves.

use std::{sync::Arc, time::Duration};

use outrider_proto::v1::{self, subscribe_request::Message, subscribe_response};
use outrider_runtime::Drain;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tonic::{Status, Streaming};

use super::{
    hello::{Hello, wants},
    ledger::{Ledger, Step},
};
use crate::{
    clock,
    compile::{Scope, view},
    metrics::Metrics,
    peer::Peer,
    publish::Mesh,
    registry::{ChangeError, Command, Encoded, Request, Revoked, Session},
    store::Store,
};

/// Changes within this time become one update.
const COALESCE: Duration = Duration::from_millis(10);
/// About how long a stream lasts where there are several replicas.
const AGE: Duration = Duration::from_secs(1800);
/// Longest text of a refusal that is kept, in characters.
const MAX_REASON: usize = 2000;

/// What streams need to do their work. Clones are the same.
#[derive(Clone)]
pub(crate) struct Publication {
    pub(crate) mesh: Mesh,
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
    pub(crate) drain: Drain,
    pub(crate) revoked: Revoked,
    /// Keys for tokens: they come and go on their own, without a revision of the mesh.
    pub(crate) jwt_bundle: watch::Receiver<Arc<Encoded>>,
}

impl Publication {
    /// How long a stream lasts. Agents of a control plane with several replicas choose anew now and then, so that they spread
    /// over those that came later.
    fn age(&self) -> Duration {
        if self.store.is_shared() { AGE.mul_f64(0.75 + 0.5 * fastrand::f64()) } else { Duration::from_secs(365 * 86_400) }
    }
}

/// Why a stream ended.
#[derive(Debug)]
pub(crate) enum StreamEnd {
    /// The agent said goodbye.
    Goodbye,
    /// The agent was revoked: its endpoints go at once.
    Revoked,
    /// The connection ended.
    Gone,
    /// We end it, with this status.
    Closed(Status),
}

/// A stream after its hello.
pub(crate) struct Stream {
    publication: Publication,
    agent_id: String,
    identity: String,
    epoch: u64,
    scope: Scope,
    /// For agents that know what they are.
    jwt_bundle: Option<watch::Receiver<Arc<Encoded>>>,
    ledger: Ledger,
    sent_at: Instant,
    out: mpsc::Sender<Result<v1::SubscribeResponse, Status>>,
    commands: mpsc::Receiver<Command>,
}

impl Stream {
    /// Makes the agent part of the mesh.
    ///
    /// # Errors
    /// With the status for the agent.
    pub(crate) async fn open(
        publication: Publication,
        hello: Hello,
        out: mpsc::Sender<Result<v1::SubscribeResponse, Status>>,
    ) -> Result<Self, Status> {
        let (send, commands) = mpsc::channel(4);
        let mesh = &publication.mesh;
        let epoch = mesh.sessions.next_epoch();
        let (agent_id, identity) = (hello.agent.id.clone(), hello.agent.identity.to_string());
        let targets = hello.targets();
        let namespace = hello.agent.identity.namespace().unwrap_or_default().to_owned();
        let session = Session {
            agent_id: agent_id.clone(),
            epoch,
            identity: identity.clone(),
            version: hello.agent.version.clone(),
            targets: Arc::clone(&targets),
            namespace: namespace.clone(),
            wants: Arc::new(hello.wants.clone()),
            in_force: 0,
            refused: None,
            considered: 0,
            answering: false,
            serial: hello.serial,
            certificate_end: hello.certificate_end,
            last_seen: clock::now(),
            commands: Some(send),
        };
        mesh.ask(|reply| Request::Join { agent: hello.agent, epoch, reply }).await.map_err(|error| refuse(&error))?;
        mesh.sessions.open(session);
        publication.metrics.agents.set(i64::try_from(mesh.sessions.count()).unwrap_or(i64::MAX));
        let takes_revocations = hello.takes_revocations;
        let scope = Scope { targets, wants: hello.wants, agent_id: agent_id.clone(), takes_revocations, namespace };
        let ledger = Ledger::new(hello.known);
        let jwt_bundle = hello.takes_jwt_bundle.then(|| publication.jwt_bundle.clone());
        Ok(Self { publication, agent_id, identity, epoch, scope, jwt_bundle, ledger, sent_at: Instant::now(), out, commands })
    }

    /// Serves the agent until an end; that of the connection's certificate is one of them, and its revocation.
    pub(crate) async fn run(mut self, mut inbound: Streaming<v1::SubscribeRequest>, peer: &Peer) {
        let end = self.serve(&mut inbound, peer).await;
        let goodbye = matches!(end, StreamEnd::Goodbye | StreamEnd::Revoked);
        let status = match end {
            StreamEnd::Closed(status) => Some(status),
            StreamEnd::Revoked => Some(Status::permission_denied("revoked")),
            StreamEnd::Goodbye | StreamEnd::Gone => None,
        };
        if let Some(status) = status {
            tracing::info!(agent = self.agent_id, identity = self.identity, reason = status.message(), "stream closed");
            // A full queue means that it does not read: it will see the connection end.
            let _ = self.out.try_send(Err(status));
        }
        let mesh = &self.publication.mesh;
        mesh.sessions.close(&self.agent_id, self.epoch);
        self.publication.metrics.agents.set(i64::try_from(mesh.sessions.count()).unwrap_or(i64::MAX));
        // The stream closes with `self.out`, after this: an agent that said goodbye knows then that its endpoints are out.
        mesh.leave(self.agent_id, self.epoch, goodbye).await;
    }

    async fn serve(&mut self, inbound: &mut Streaming<v1::SubscribeRequest>, peer: &Peer) -> StreamEnd {
        let left = u64::try_from(peer.not_after - clock::now()).unwrap_or(0);
        let expiry = Instant::now() + Duration::from_secs(left);
        let move_on = Instant::now() + self.publication.age();
        let mut world = self.publication.mesh.world.clone();
        let drain = self.publication.drain.clone();
        let mut revoked = self.publication.revoked.clone();
        world.mark_changed();
        let mut due = None;
        loop {
            let ready = self.ledger.is_idle();
            let end = tokio::select! {
                () = revoked.fall(peer) => Some(StreamEnd::Revoked),
                message = inbound.message() => match message {
                    Ok(Some(v1::SubscribeRequest { message: Some(message) })) => {
                        due.get_or_insert_with(Instant::now);
                        self.hear(message).await
                    }
                    Ok(Some(_)) => Some(StreamEnd::Closed(Status::invalid_argument("a message of a kind that is not known"))),
                    Ok(None) | Err(_) => Some(StreamEnd::Gone),
                },
                changed = world.changed() => match changed {
                    Ok(()) => { due.get_or_insert_with(|| Instant::now() + COALESCE); None }
                    Err(_) => Some(stopping()),
                },
                () = sleep_until(due.unwrap_or(expiry)), if ready && due.is_some() => {
                    due = None;
                    let world = Arc::clone(&world.borrow_and_update());
                    self.push(&world)
                }
                () = changed(&mut self.jwt_bundle) => { due.get_or_insert_with(|| Instant::now() + COALESCE); None }
                command = self.commands.recv() => self.obey(command),
                () = sleep_until(expiry) => Some(StreamEnd::Closed(Status::unauthenticated("the certificate of the connection has expired"))),
                () = sleep_until(move_on) => Some(StreamEnd::Closed(Status::unavailable("time to choose a replica anew"))),
                () = drain.stopping() => Some(stopping()),
                () = self.out.closed() => Some(StreamEnd::Gone),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Sends what the agent lacks, or notes that it lacks nothing.
    fn push(&mut self, world: &crate::registry::World) -> Option<StreamEnd> {
        let mut view = view(world, &self.scope);
        if let Some(bundle) = &mut self.jwt_bundle {
            let bundle = Arc::clone(&bundle.borrow_and_update());
            view.insert((bundle.kind, bundle.name.clone()), bundle);
        }
        match self.ledger.step(&view, world.revision) {
            Step::Wait => {
                self.note(|session| session.considered = world.revision);
                None
            }
            Step::InForce(revision) => {
                self.in_force(revision);
                None
            }
            Step::Send(update) => {
                self.publication.metrics.pushes.inc();
                self.sent_at = Instant::now();
                self.note(|session| (session.considered, session.answering) = (world.revision, true));
                self.send(subscribe_response::Message::Update(update))
            }
        }
    }

    async fn hear(&mut self, message: Message) -> Option<StreamEnd> {
        let now = clock::now();
        self.note(|session| session.last_seen = now);
        match message {
            Message::Hello(_) => Some(invalid("only the first message is a hello")),
            Message::Goodbye(_) => Some(StreamEnd::Goodbye),
            Message::Want(want) => match wants(&want) {
                Ok(wants) => {
                    let shown = Arc::new(wants.clone());
                    self.note(|session| session.wants = shown);
                    self.scope.wants = wants;
                    None
                }
                Err(reason) => Some(invalid(reason)),
            },
            // On the heap while it lasts: it waits for the store, and is rare.
            Message::Identity(status) => Box::pin(self.certificate(status)).await,
            Message::Ack(ack) => match self.ledger.ack(ack.nonce) {
                Ok(whole) => {
                    self.publication.metrics.acks.inc();
                    self.note(|session| session.answering = false);
                    self.publication.metrics.in_force.observe(self.sent_at.elapsed().as_secs_f64());
                    if let Some(revision) = whole {
                        self.in_force(revision);
                    }
                    None
                }
                Err(stray) => Some(invalid(stray)),
            },
            Message::Nack(nack) => match self.ledger.nack(nack.nonce) {
                Ok(revision) => {
                    let reason: String = nack.reason.chars().take(MAX_REASON).collect();
                    tracing::warn!(agent = self.agent_id, identity = self.identity, revision, reason, "agent refused an update");
                    self.publication.metrics.nacks.inc();
                    self.note(|session| (session.refused, session.answering) = (Some((revision, reason)), false));
                    None
                }
                Err(stray) => Some(invalid(stray)),
            },
        }
    }

    async fn certificate(&mut self, status: v1::IdentityStatus) -> Option<StreamEnd> {
        if status.identity != self.identity {
            return Some(StreamEnd::Closed(Status::permission_denied(
                "that certificate is of another identity than this connection's",
            )));
        }
        if status.serial.len() > 64 || !status.serial.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Some(invalid("a serial is at most 64 hex digits"));
        }
        if let Err(error) = self.publication.store.holds(&status.serial, &self.identity, &self.agent_id).await {
            self.publication.metrics.store_errors.inc();
            tracing::warn!(error = outrider_runtime::tasks::chain(&error), "certificate's holder not noted");
        }
        self.note(|session| {
            session.serial = status.serial;
            session.certificate_end = status.not_after;
        });
        None
    }

    fn obey(&mut self, command: Option<Command>) -> Option<StreamEnd> {
        match command {
            Some(Command::Renew) => self.send(subscribe_response::Message::RenewIdentity(v1::RenewIdentity {})),
            Some(Command::Replaced) => Some(StreamEnd::Closed(Status::aborted("the agent has opened a newer stream"))),
            None => Some(stopping()),
        }
    }

    fn send(&self, message: subscribe_response::Message) -> Option<StreamEnd> {
        let response = v1::SubscribeResponse { message: Some(message) };
        match self.out.try_send(Ok(response)) {
            Ok(()) => None,
            Err(_) => Some(StreamEnd::Closed(Status::resource_exhausted("the agent does not read its stream"))),
        }
    }

    fn in_force(&self, revision: u64) {
        self.note(|session| {
            session.in_force = revision;
            session.refused = None;
        });
    }

    fn note(&self, change: impl FnOnce(&mut Session)) {
        self.publication.mesh.sessions.update(&self.agent_id, self.epoch, change);
    }
}

/// Ends when there are other keys than those that were pushed; never for agents that take none.
async fn changed(bundle: &mut Option<watch::Receiver<Arc<Encoded>>>) {
    let Some(bundle) = bundle else { return std::future::pending().await };
    if bundle.changed().await.is_err() {
        std::future::pending().await
    }
}

fn invalid(reason: impl ToString) -> StreamEnd {
    StreamEnd::Closed(Status::invalid_argument(reason.to_string()))
}

fn stopping() -> StreamEnd {
    StreamEnd::Closed(Status::unavailable("the control plane is stopping"))
}

fn refuse(error: &ChangeError) -> Status {
    match error {
        ChangeError::AgentTaken(_) => Status::permission_denied(error.to_string()),
        ChangeError::TooManyAgents(_) | ChangeError::TooManyOfIdentity(..) | ChangeError::TooManyRevocations(_) => {
            Status::resource_exhausted(error.to_string())
        }
        ChangeError::NotFound(_) => Status::not_found(error.to_string()),
        ChangeError::Canary(_) | ChangeError::Replicas(_) => Status::failed_precondition(error.to_string()),
        ChangeError::Store(_) | ChangeError::Stopping => Status::unavailable("the control plane cannot answer now"),
    }
}
