//! `Admin`: what operators do. Looks things up and asks for changes; the work is done elsewhere.

use std::{sync::Arc, time::Duration};

use outrider_policy::{ServiceName, SpiffeId, Target, TrustDomain};
use outrider_proto::v1::{self, admin_server::Admin};
use outrider_runtime::{Drain, Tasks};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{admin_words as words, unavailable};
use crate::{
    attest::JoinTokens,
    ca::Authority,
    clock,
    compile::{ExplainError, Recorded, describe, explain, identity},
    operators::{Logins, Note, author},
    publish::Mesh,
    registry::{Applied, ChangeError, Command, Concerned, Request as Change, RolledBack, Route, Session, World, nearest},
    rotate::Rotation,
    store::{AgentRow, Deed, Store, StoreError},
};

/// Most names of one deletion, most manifests of one apply.
const MAX_NAMES: usize = 10_000;
/// Most certificates listed.
const MAX_CERTIFICATES: u32 = 50_000;
/// Progress is told at most this often.
const PROGRESS: Duration = Duration::from_millis(20);

/// The service.
#[derive(Clone)]
pub(crate) struct Operators {
    pub(crate) mesh: Mesh,
    pub(crate) store: Store,
    pub(crate) tokens: JoinTokens,
    pub(crate) logins: Logins,
    /// `host:port` of the operators' port; empty when it is off.
    pub(crate) door: String,
    pub(crate) authority: Arc<Authority>,
    /// The control plane's own identity: nobody else's.
    pub(crate) own: Arc<SpiffeId>,
    /// `host:port` that agents are told.
    pub(crate) advertise: String,
    /// How far the last change of the trust anchor is.
    pub(crate) rotation: watch::Receiver<Option<Rotation>>,
    pub(crate) warnings: Arc<[String]>,
    pub(crate) tasks: Tasks,
    pub(crate) drain: Drain,
}

pub(super) type Progress<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Admin for Operators {
    type WatchRolloutStream = Progress<v1::RolloutStatus>;
    type CanaryStream = Progress<v1::CanaryStatus>;
    type RotateCertificatesStream = Progress<v1::RotationStatus>;
    type RotateCaStream = Progress<v1::CaRotation>;

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        let v1::ApplyRequest { manifests, dry_run, allow_unknown_services } = request.into_inner();
        if manifests.len() > MAX_NAMES {
            return Err(Status::invalid_argument(format!("at most {MAX_NAMES} manifests can be applied at once")));
        }
        let documents = manifests.into_iter().map(|manifest| (manifest.source, manifest.yaml)).collect();
        let unknown = words::unknown(allow_unknown_services);
        let Applied { diagnostics, changes, revision } = self
            .mesh
            .ask(|reply| Change::Apply { documents, unknown, dry_run, author, reply })
            .await
            .map_err(|error| changed(&error))?;
        note_changes(&note, &changes, dry_run);
        Ok(Response::new(v1::ApplyResponse {
            diagnostics: diagnostics.into_iter().map(words::diagnostic).collect(),
            changes: words::changes(changes),
            revision,
        }))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        let v1::DeleteRequest { kind, names } = request.into_inner();
        let names: Vec<String> = match kind.as_str() {
            words::KIND => names,
            "HTTPRoute" | "GRPCRoute" => names.into_iter().map(|name| format!("{kind}/{name}")).collect(),
            _ => {
                let known = format!("`{}`, `HTTPRoute` and `GRPCRoute`", words::KIND);
                return Err(Status::invalid_argument(format!("kind `{kind}` cannot be deleted: only {known} can")));
            }
        };
        if names.len() > MAX_NAMES {
            return Err(Status::invalid_argument(format!("at most {MAX_NAMES} resources can be deleted at once")));
        }
        note.subject(names.join(" "));
        let Applied { changes, revision, .. } =
            self.mesh.ask(|reply| Change::Delete { names, author, reply }).await.map_err(|error| changed(&error))?;
        Ok(Response::new(v1::DeleteResponse { changes: words::changes(changes), revision }))
    }

    async fn replay(&self, request: Request<v1::ReplayRequest>) -> Result<Response<v1::ReplayResponse>, Status> {
        self.replayed(request.into_inner()).await.map(Response::new)
    }

    async fn canary(&self, request: Request<v1::CanaryRequest>) -> Result<Response<Self::CanaryStream>, Status> {
        let author = author(&request);
        Note::of(&request).subject("candidates for some agents");
        let order = self.order(request.into_inner(), author)?;
        let mut told = self.mesh.ask(|reply| Change::Canary { order, reply }).await.map_err(|error| changed(&error))?;
        let (send, progress) = mpsc::channel(4);
        // The canary does not end when nobody listens any more.
        self.tasks.spawn_scoped(async move {
            loop {
                let state = told.borrow_and_update().clone();
                if send.send(Ok(words::canary(state))).await.is_err() || told.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(progress)))
    }

    async fn rollback(&self, request: Request<v1::RollbackRequest>) -> Result<Response<v1::RollbackResponse>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        let v1::RollbackRequest { revision, dry_run } = request.into_inner();
        note.subject(if dry_run { format!("to {revision}, dry run") } else { format!("to {revision}") });
        let done = self.mesh.ask(|reply| Change::Rollback { revision, dry_run, author, reply }).await;
        let newest = self.mesh.world.borrow().revision;
        Ok(Response::new(match done.map_err(|error| changed(&error))? {
            RolledBack::Canary => v1::RollbackResponse { revision: newest, canary_ended: true, ..Default::default() },
            RolledBack::To(restored, Applied { changes, revision, .. }) => {
                v1::RollbackResponse { changes: words::changes(changes), revision, restored, canary_ended: false }
            }
        }))
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Result<Response<v1::ListRevisionsResponse>, Status> {
        let limit = match request.into_inner().limit {
            0 => 100,
            limit => limit.min(1000),
        };
        let rows = self.store.policy_revisions(limit).await.map_err(|error| unavailable("revisions", &error))?;
        Ok(Response::new(v1::ListRevisionsResponse { revisions: rows.into_iter().map(words::revision).collect() }))
    }

    async fn list_policies(
        &self,
        request: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        let namespace = request.into_inner().namespace;
        let world = Arc::clone(&self.mesh.world.borrow());
        let (targets, sessions) = (world.targets(), self.mesh.sessions.list());
        let here = |name: &str| namespace.is_empty() || name.split_once('/').is_some_and(|(first, _)| first == namespace);
        let policies = world.policies.iter().filter(|(name, _)| here(name));
        let policies =
            policies.map(|(name, policy)| words::policy(name, policy, &targets, &sessions, world.canary.as_deref())).collect();
        Ok(Response::new(v1::ListPoliciesResponse { policies, revision: world.revision }))
    }

    async fn list_routes(&self, request: Request<v1::ListRoutesRequest>) -> Result<Response<v1::ListRoutesResponse>, Status> {
        let namespace = request.into_inner().namespace;
        let world = Arc::clone(&self.mesh.world.borrow());
        let sessions = self.mesh.sessions.list();
        let here = |route: &Route| namespace.is_empty() || route.stored.route.metadata.namespace.as_str() == namespace;
        let routes = world.routes.values().filter(|route| here(route)).map(|route| words::route(route, &sessions)).collect();
        Ok(Response::new(v1::ListRoutesResponse { routes, revision: world.revision }))
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        let namespace = request.into_inner().namespace;
        let world = Arc::clone(&self.mesh.world.borrow());
        let services = world.services.iter().filter(|(name, _)| namespace.is_empty() || name.namespace() == namespace);
        let connected = |entry: &v1::Service| {
            let live = entry.endpoints.iter().filter(|endpoint| self.mesh.sessions.find(&endpoint.agent_id).is_some()).count();
            u32::try_from(live).unwrap_or(u32::MAX)
        };
        let services = services
            .map(|(_, entry)| v1::ServiceStatus { service: Some(entry.service.clone()), connected: connected(&entry.service) })
            .collect();
        Ok(Response::new(v1::ListServicesResponse { services }))
    }

    async fn list_agents(&self, _request: Request<v1::ListAgentsRequest>) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let world = Arc::clone(&self.mesh.world.borrow());
        let agents =
            world.agents.values().map(|agent| words::agent(agent, self.mesh.sessions.find(&agent.id).as_ref())).collect();
        Ok(Response::new(v1::ListAgentsResponse { agents }))
    }

    async fn watch_rollout(
        &self,
        request: Request<v1::WatchRolloutRequest>,
    ) -> Result<Response<Self::WatchRolloutStream>, Status> {
        let revision = request.into_inner().revision;
        let newest = self.mesh.world.borrow().revision;
        if revision > newest {
            return Err(Status::invalid_argument(format!("revision {revision} does not exist yet, the newest is {newest}")));
        }
        let mesh = self.mesh.clone();
        Ok(self.follow(move || {
            let world = Arc::clone(&mesh.world.borrow());
            let status = words::rollout(revision, &concerned(&mesh, &world, revision), |id| world.is_present(id));
            let done = status.done;
            (status, done)
        }))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let world = Arc::clone(&self.mesh.world.borrow());
        let trust_domain = self.trust_domain();
        match request.into_inner().subject {
            None => Err(Status::invalid_argument("name a call or a request id")),
            Some(v1::explain_request::Subject::Call(call)) => {
                let answer = match explain(&world, trust_domain, &call, None) {
                    Err(ExplainError::Refused(refused)) => words::unreadable(refused),
                    explained => words::explained(explained.map_err(|error| not_explained(&error))?, Vec::new()),
                };
                Ok(Response::new(answer))
            }
            Some(v1::explain_request::Subject::RequestId(id)) => {
                let records = self.store.decisions_of(&id).await.map_err(|error| unavailable("explain", &error))?;
                let records = decode(records)?;
                let inbound = records.iter().find(|record| record.side() == v1::Side::Inbound).or_else(|| records.first());
                let Some(record) = inbound else {
                    return Err(Status::not_found(format!("no decision is recorded for request `{id}`")));
                };
                if record.destination.parse::<ServiceName>().is_err() {
                    // It got no further than its own agent: there is no policy to ask.
                    return Ok(Response::new(words::undecided(record.clone(), records)));
                }
                let (call, protocol) = describe(record);
                let recorded = Recorded { record, protocol };
                let mut explained =
                    explain(&world, trust_domain, &call, Some(&recorded)).map_err(|error| not_explained(&error))?;
                explained.notes.extend(words::since(record, &explained.explanation));
                Ok(Response::new(words::explained(explained, records)))
            }
        }
    }

    async fn list_decisions(
        &self,
        request: Request<v1::ListDecisionsRequest>,
    ) -> Result<Response<v1::ListDecisionsResponse>, Status> {
        let v1::ListDecisionsRequest { limit, denied_only, destination } = request.into_inner();
        let limit = if limit == 0 { 100 } else { limit.min(1000) };
        let records = self.store.decisions(limit, denied_only, &destination).await;
        let decisions = decode(records.map_err(|error| unavailable("decisions", &error))?)?;
        Ok(Response::new(v1::ListDecisionsResponse { decisions }))
    }

    async fn create_token(&self, request: Request<v1::CreateTokenRequest>) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        let v1::CreateTokenRequest { identity: name, services, ttl_seconds, caller_only } = request.into_inner();
        note.subject(&name);
        let ttl = match ttl_seconds {
            0 => 600,
            ttl @ 60..=86_400 => i64::from(ttl),
            ttl => return Err(Status::invalid_argument(format!("a token lives 60 to 86400 seconds, not {ttl}"))),
        };
        let identity = identity(&name, self.trust_domain()).map_err(Status::invalid_argument)?;
        let identity = identity.ok_or_else(|| Status::invalid_argument("name an identity"))?;
        let account = identity.account().filter(|_| identity.belongs_to(self.trust_domain()));
        let Some(account) = account else {
            let of = self.trust_domain();
            return Err(Status::invalid_argument(format!("`{identity}` is not a workload of trust domain `{of}`")));
        };
        if identity == *self.own {
            return Err(Status::invalid_argument(format!(
                "`{identity}` is the control plane itself: no token can be had for it"
            )));
        }
        if caller_only && !services.is_empty() {
            return Err(Status::invalid_argument(
                "a bearer that only calls can back no service: name services, or `caller_only`",
            ));
        }
        let mut services: Vec<ServiceName> = services
            .iter()
            .map(|service| service.parse().map_err(|error| Status::invalid_argument(format!("service: {error}"))))
            .collect::<Result<_, _>>()?;
        if services.is_empty() && !caller_only {
            // An account may be named as no service can be, with dots in it: then there is nothing to grant by default.
            services.extend(ServiceName::new(account.namespace(), account.name()).ok());
        }
        let made = self.tokens.create(self.authority.root_pin(), identity.clone(), &services, ttl, &author, clock::now()).await;
        let (token, expires) = made
            .map_err(|error| unavailable("token", &error))?
            .ok_or_else(|| Status::unavailable("the system gave no random bytes"))?;
        tracing::info!(%identity, who = author.who, "join token created");
        Ok(Response::new(v1::CreateTokenResponse {
            token,
            expires,
            identity: identity.to_string(),
            control_plane: self.addresses().await,
        }))
    }

    async fn revoke_tokens(
        &self,
        request: Request<v1::RevokeTokensRequest>,
    ) -> Result<Response<v1::RevokeTokensResponse>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        self.tokens_revoked(request.into_inner(), (&author, &note)).await.map(Response::new)
    }

    async fn list_certificates(
        &self,
        request: Request<v1::ListCertificatesRequest>,
    ) -> Result<Response<v1::ListCertificatesResponse>, Status> {
        let rows = self.store.certificates(request.into_inner().all, clock::now(), MAX_CERTIFICATES).await;
        let certificates =
            rows.map_err(|error| unavailable("certificates", &error))?.into_iter().map(words::certificate).collect();
        Ok(Response::new(v1::ListCertificatesResponse { certificates }))
    }

    async fn rotate_certificates(
        &self,
        request: Request<v1::RotateCertificatesRequest>,
    ) -> Result<Response<Self::RotateCertificatesStream>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        let wanted = identity(&request.into_inner().identity, self.trust_domain()).map_err(Status::invalid_argument)?;
        let before = self.mesh.sessions.list();
        let asked: Vec<Session> = before
            .iter()
            .filter(|session| wanted.as_ref().is_none_or(|wanted| wanted.as_str() == session.identity))
            .cloned()
            .collect();
        if let (Some(wanted), true) = (&wanted, asked.is_empty()) {
            let near = nearest(wanted.as_str(), before.iter().map(|session| session.identity.as_str()));
            let hint = near.map_or_else(String::new, |near| format!(": did you mean `{near}`?"));
            return Err(Status::not_found(format!("no connected agent of `{wanted}`{hint}")));
        }
        let subject = wanted.map_or_else(|| "*".to_owned(), |wanted| wanted.to_string());
        note.subject(&subject);
        let (ours, elsewhere): (Vec<&Session>, Vec<&Session>) = asked.iter().partition(|session| session.commands.is_some());
        let elsewhere: Vec<String> = elsewhere.iter().map(|session| session.agent_id.clone()).collect();
        let deed = Deed { author: &author, call: "RotateCertificates", subject: &subject };
        let ordered = self.store.ask_renewals(&elsewhere, deed, clock::now()).await;
        ordered.map_err(|error| unavailable("renewals", &error))?;
        for session in ours {
            // One whose queue is full has been asked already.
            self.mesh.sessions.command(&session.agent_id, Command::Renew);
        }
        let sessions = self.mesh.sessions.clone();
        Ok(self.follow(move || {
            let status = words::rotation(&asked, |id| sessions.find(id));
            let done = status.done;
            (status, done)
        }))
    }

    async fn rotate_ca(&self, request: Request<v1::RotateCaRequest>) -> Result<Response<Self::RotateCaStream>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        note.subject("trust anchor");
        self.rotation_asked(request.into_inner(), &author).await
    }

    async fn get_ca_rotation(&self, _request: Request<v1::GetCaRotationRequest>) -> Result<Response<v1::CaRotation>, Status> {
        self.last_rotation().await.map(Response::new)
    }

    async fn create_operator(
        &self,
        request: Request<v1::CreateOperatorRequest>,
    ) -> Result<Response<v1::CreateOperatorResponse>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        self.invited(request.into_inner(), (&author, &note)).await.map(Response::new)
    }

    async fn list_operators(
        &self,
        _request: Request<v1::ListOperatorsRequest>,
    ) -> Result<Response<v1::ListOperatorsResponse>, Status> {
        self.listed_operators().await.map(Response::new)
    }

    async fn remove_operator(
        &self,
        request: Request<v1::RemoveOperatorRequest>,
    ) -> Result<Response<v1::RemoveOperatorResponse>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        self.removed(&request.into_inner().name, (&author, &note)).await.map(Response::new)
    }

    async fn list_audit(&self, request: Request<v1::ListAuditRequest>) -> Result<Response<v1::ListAuditResponse>, Status> {
        self.audit_log(request.into_inner()).await.map(Response::new)
    }

    async fn revoke(&self, request: Request<v1::RevokeRequest>) -> Result<Response<v1::RevokeResponse>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        note.subject(format!("{}: {}", request.get_ref().subject, request.get_ref().reason));
        self.revoked(request.into_inner(), author).await.map(Response::new)
    }

    async fn unrevoke(&self, request: Request<v1::UnrevokeRequest>) -> Result<Response<v1::RevokeResponse>, Status> {
        let (author, note) = (author(&request), Note::of(&request));
        note.subject(&request.get_ref().subject);
        self.unrevoked(request.into_inner(), author).await.map(Response::new)
    }

    async fn list_revocations(
        &self,
        _request: Request<v1::ListRevocationsRequest>,
    ) -> Result<Response<v1::ListRevocationsResponse>, Status> {
        Ok(Response::new(self.revocations()))
    }

    async fn status(&self, _request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let authorities = self.authority.describe();
        let mut warnings = words::ca_warnings(&authorities, clock::now());
        let refused = self.authority.refused_files();
        warnings.extend(refused.map(|reason| format!("the mounted CA is refused, the one before is in use: {reason}")));
        warnings.extend(self.mesh.sessions.list().iter().filter_map(words::refusal));
        let world = Arc::clone(&self.mesh.world.borrow());
        warnings.extend(world.canary.as_deref().map(words::under_way));
        warnings.extend(world.policies.iter().filter_map(|(name, policy)| words::plaintext(name, policy)));
        warnings.extend(self.warnings.iter().cloned());
        Ok(Response::new(v1::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.trust_domain().to_string(),
            revision: world.revision,
            address: self.addresses().await,
            agents_connected: u32::try_from(self.mesh.sessions.list().len()).unwrap_or(u32::MAX),
            certificate_authorities: authorities.into_iter().map(words::authority).collect(),
            warnings,
            leaf_ttl_seconds: u32::try_from(self.authority.leaf_ttl()).unwrap_or(u32::MAX),
            root_history: self.authority.known_roots(),
        }))
    }
}

impl Operators {
    pub(super) fn trust_domain(&self) -> &TrustDomain {
        self.authority.trust_domain()
    }

    /// Where agents find this control plane: all replicas that live, this one first.
    async fn addresses(&self) -> String {
        let others = if self.store.is_shared() { self.store.replicas().await.unwrap_or_default() } else { Vec::new() };
        let others = others.into_iter().filter(|replica| replica.is_live() && replica.address != self.advertise);
        let all: Vec<String> = std::iter::once(self.advertise.clone()).chain(others.map(|replica| replica.address)).collect();
        all.join(",")
    }

    /// Tells progress whenever it differs, until it is done or nobody listens.
    fn follow<T: Clone + PartialEq + Send + Sync + 'static>(
        &self,
        look: impl Fn() -> (T, bool) + Send + 'static,
    ) -> Response<Progress<T>> {
        let (send, progress) = mpsc::channel(4);
        let (mut changes, mut world, drain) = (self.mesh.sessions.changes(), self.mesh.world.clone(), self.drain.clone());
        self.tasks.spawn_scoped(async move {
            let mut told = None;
            loop {
                changes.mark_unchanged();
                world.mark_unchanged();
                let (status, done) = look();
                if told.as_ref() != Some(&status) {
                    told = Some(status.clone());
                    if send.send(Ok(status)).await.is_err() {
                        return;
                    }
                }
                if done {
                    return;
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    Ok(()) = world.changed() => {}
                    () = send.closed() => return,
                    () = drain.stopping() => {
                        // Nobody listens any more, or it hears why the progress ends.
                        let _ = send.try_send(Err(Status::unavailable("the control plane is stopping")));
                        return;
                    }
                }
                tokio::time::sleep(PROGRESS).await;
            }
        });
        Response::new(ReceiverStream::new(progress))
    }
}

/// Whom a revision concerns. When that is not remembered, those that the policies of the revision apply to; when there is
/// none of it any more, everybody.
fn concerned(mesh: &Mesh, world: &World, revision: u64) -> Vec<Concerned> {
    if let Some(remembered) = mesh.sessions.concerned(revision) {
        return remembered;
    }
    let policies: Vec<_> = world.policies.values().filter(|policy| policy.stored.revision == revision).collect();
    let applies = |targets: &[Target]| policies.is_empty() || policies.iter().any(|policy| policy.applies_to_any(targets));
    let concerned = |agent: Arc<AgentRow>| Concerned {
        agent_id: agent.id.clone(),
        identity: agent.identity.to_string(),
        session: mesh.sessions.find(&agent.id),
    };
    world.reach(applies).into_iter().map(concerned).collect()
}

/// Says for the log what an apply was about.
fn note_changes(note: &Note, changes: &[(String, crate::registry::Change)], dry_run: bool) {
    let names: Vec<&str> = changes.iter().map(|(name, _)| name.as_str()).collect();
    note.subject(if dry_run { format!("dry run of {}", names.join(" ")) } else { names.join(" ") });
}

fn changed(error: &ChangeError) -> Status {
    match error {
        ChangeError::NotFound(_) => Status::not_found(error.to_string()),
        ChangeError::Canary(_) | ChangeError::Replicas(_) => Status::failed_precondition(error.to_string()),
        ChangeError::Store(overtaken @ StoreError::Overtaken) => Status::aborted(overtaken.to_string()),
        ChangeError::Store(error) => unavailable("change", error),
        _ => Status::unavailable(error.to_string()),
    }
}

fn not_explained(error: &ExplainError) -> Status {
    match error {
        ExplainError::Described(_) | ExplainError::Refused(_) => Status::invalid_argument(error.to_string()),
        ExplainError::Compile { .. } => Status::failed_precondition(error.to_string()),
    }
}

fn decode(records: Vec<Vec<u8>>) -> Result<Vec<v1::DecisionRecord>, Status> {
    let decoded: Result<Vec<_>, _> = records.iter().map(|record| v1::DecisionRecord::decode(record.as_slice())).collect();
    decoded.map_err(|error| unavailable("decisions", &error))
}
