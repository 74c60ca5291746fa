//! A control plane that says what a test tells it to, on a real socket, and the real `outrider` to talk to it.

use std::{
    path::PathBuf,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex},
};

use outrider_proto::v1::{
    CanaryRequest, CanaryStatus, ListRevisionsRequest, ListRevisionsResponse, ReplayRequest, ReplayResponse, RollbackRequest,
    RollbackResponse,
    admin_server::{Admin, AdminServer},
    *,
};
use outrider_runtime::Tasks;
use tokio::{io::AsyncWriteExt as _, net::UnixListener, process::Command};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, transport::Server};

/// What the control plane answers. What is `None` it does not know.
#[derive(Clone, Default)]
pub(crate) struct Answers {
    pub(crate) apply: Option<Result<ApplyResponse, Status>>,
    pub(crate) delete: Option<Result<DeleteResponse, Status>>,
    pub(crate) policies: Option<ListPoliciesResponse>,
    pub(crate) routes: Option<ListRoutesResponse>,
    pub(crate) services: Option<ListServicesResponse>,
    pub(crate) agents: Option<ListAgentsResponse>,
    pub(crate) decisions: Option<ListDecisionsResponse>,
    pub(crate) certificates: Option<ListCertificatesResponse>,
    pub(crate) revoke: Option<Result<RevokeResponse, Status>>,
    pub(crate) revocations: Option<ListRevocationsResponse>,
    pub(crate) ca_rotation: Vec<CaRotation>,
    pub(crate) explain: Option<Result<ExplainResponse, Status>>,
    pub(crate) token: Option<CreateTokenResponse>,
    pub(crate) status: Option<StatusResponse>,
    pub(crate) rollout: Vec<RolloutStatus>,
    pub(crate) rotation: Vec<RotationStatus>,
    pub(crate) replay: Option<ReplayResponse>,
    pub(crate) canary: Vec<CanaryStatus>,
    pub(crate) rollback: Option<Result<RollbackResponse, Status>>,
    pub(crate) revisions: Option<ListRevisionsResponse>,
    /// Streams stay open after their last message.
    pub(crate) stays_open: bool,
    /// Nobody can be followed.
    pub(crate) watch_fails: bool,
}

/// The fake's side of the wire.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    answers: Arc<Answers>,
    asked: Arc<Mutex<Vec<String>>>,
}

/// A running control plane.
pub(crate) struct Plane {
    directory: tempfile::TempDir,
    fake: Fake,
    _tasks: Tasks,
}

/// What a run of `outrider` left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Plane {
    /// Starts one.
    pub(crate) fn start(answers: Answers) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fake = Fake { answers: Arc::new(answers), asked: Arc::default() };
        let listener = UnixListener::bind(directory.path().join("admin.sock")).unwrap();
        let server = Server::builder().add_service(AdminServer::new(fake.clone()));
        let tasks = Tasks::new();
        tasks.spawn("fake control plane", async move { server.serve_with_incoming(UnixListenerStream::new(listener)).await });
        Self { directory, fake, _tasks: tasks }
    }

    /// Writes a file beside the socket and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Runs `outrider` against it.
    pub(crate) async fn outrider(&self, words: &[&str]) -> Ran {
        outrider(self.directory.path().join("admin.sock"), words, "").await
    }

    /// Runs `outrider` with something to read.
    pub(crate) async fn outrider_reading(&self, words: &[&str], input: &str) -> Ran {
        outrider(self.directory.path().join("admin.sock"), words, input).await
    }

    /// Runs `outrider` with a standard output that nobody reads any more.
    pub(crate) async fn outrider_unread(&self, words: &[&str]) -> Ran {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrider"));
        command.args(words).env("OUTRIDER_ADMIN_SOCKET", self.directory.path().join("admin.sock"));
        let output = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).output().await.unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        Ran { code: output.status.code().unwrap(), out: String::new(), err }
    }

    /// The requests so far, in Rust's debug form.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.fake.asked.lock().unwrap().clone()
    }
}

/// Runs the real program.
pub(crate) async fn outrider(socket: PathBuf, words: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outrider"))
        .args(words)
        .env("OUTRIDER_ADMIN_SOCKET", socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may end without reading.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

impl Fake {
    fn answer<Q: std::fmt::Debug, A: Clone>(
        &self,
        request: Request<Q>,
        answer: &Option<Result<A, Status>>,
    ) -> Result<Response<A>, Status> {
        self.asked.lock().unwrap().push(format!("{:?}", request.into_inner()));
        answer.clone().unwrap_or_else(|| Err(Status::unimplemented(""))).map(Response::new)
    }

    fn list<Q: std::fmt::Debug, A: Clone>(&self, request: Request<Q>, answer: &Option<A>) -> Result<Response<A>, Status> {
        self.answer(request, &answer.clone().map(Ok))
    }

    fn stream<Q: std::fmt::Debug, A: Send + Clone + 'static>(
        &self,
        request: Request<Q>,
        steps: &[A],
    ) -> Result<Response<Steps<A>>, Status> {
        self.asked.lock().unwrap().push(format!("{:?}", request.into_inner()));
        if self.answers.watch_fails {
            return Err(Status::unavailable("the control plane is stopping"));
        }
        let told = tokio_stream::iter(steps.to_vec()).map(Ok);
        let stream: Steps<A> =
            if self.answers.stays_open { Box::pin(told.chain(tokio_stream::pending())) } else { Box::pin(told) };
        Ok(Response::new(stream))
    }
}

type Steps<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

#[tonic::async_trait]
impl Admin for Fake {
    type WatchRolloutStream = Steps<RolloutStatus>;
    type RotateCertificatesStream = Steps<RotationStatus>;
    type CanaryStream = Steps<CanaryStatus>;

    async fn create_operator(&self, _: Request<CreateOperatorRequest>) -> Result<Response<CreateOperatorResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_operators(&self, _: Request<ListOperatorsRequest>) -> Result<Response<ListOperatorsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn remove_operator(&self, _: Request<RemoveOperatorRequest>) -> Result<Response<RemoveOperatorResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_audit(&self, _: Request<ListAuditRequest>) -> Result<Response<ListAuditResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        self.answer(request, &self.answers.apply)
    }

    async fn replay(&self, request: Request<ReplayRequest>) -> Result<Response<ReplayResponse>, Status> {
        self.list(request, &self.answers.replay)
    }

    async fn canary(&self, request: Request<CanaryRequest>) -> Result<Response<Self::CanaryStream>, Status> {
        self.stream(request, &self.answers.canary)
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<RollbackResponse>, Status> {
        self.answer(request, &self.answers.rollback)
    }

    async fn list_revisions(&self, request: Request<ListRevisionsRequest>) -> Result<Response<ListRevisionsResponse>, Status> {
        self.list(request, &self.answers.revisions)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        self.answer(request, &self.answers.delete)
    }

    async fn list_policies(&self, request: Request<ListPoliciesRequest>) -> Result<Response<ListPoliciesResponse>, Status> {
        self.list(request, &self.answers.policies)
    }

    async fn list_routes(&self, request: Request<ListRoutesRequest>) -> Result<Response<ListRoutesResponse>, Status> {
        self.list(request, &self.answers.routes)
    }

    async fn list_services(&self, request: Request<ListServicesRequest>) -> Result<Response<ListServicesResponse>, Status> {
        self.list(request, &self.answers.services)
    }

    async fn list_agents(&self, request: Request<ListAgentsRequest>) -> Result<Response<ListAgentsResponse>, Status> {
        self.list(request, &self.answers.agents)
    }

    async fn watch_rollout(&self, request: Request<WatchRolloutRequest>) -> Result<Response<Self::WatchRolloutStream>, Status> {
        self.stream(request, &self.answers.rollout)
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        self.answer(request, &self.answers.explain)
    }

    async fn list_decisions(&self, request: Request<ListDecisionsRequest>) -> Result<Response<ListDecisionsResponse>, Status> {
        self.list(request, &self.answers.decisions)
    }

    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Result<Response<CreateTokenResponse>, Status> {
        self.list(request, &self.answers.token)
    }

    async fn revoke_tokens(&self, _request: Request<RevokeTokensRequest>) -> Result<Response<RevokeTokensResponse>, Status> {
        Err(Status::unimplemented("not told what to say"))
    }

    async fn list_certificates(
        &self,
        request: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesResponse>, Status> {
        self.list(request, &self.answers.certificates)
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        self.answer(request, &self.answers.revoke)
    }

    async fn unrevoke(&self, request: Request<UnrevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        self.answer(request, &self.answers.revoke)
    }

    type RotateCaStream = Steps<CaRotation>;

    async fn rotate_ca(&self, request: Request<RotateCaRequest>) -> Result<Response<Self::RotateCaStream>, Status> {
        self.stream(request, &self.answers.ca_rotation)
    }

    async fn get_ca_rotation(&self, request: Request<GetCaRotationRequest>) -> Result<Response<CaRotation>, Status> {
        self.answer(request, &Some(Ok(self.answers.ca_rotation.last().cloned().unwrap_or_default())))
    }

    async fn list_revocations(
        &self,
        request: Request<ListRevocationsRequest>,
    ) -> Result<Response<ListRevocationsResponse>, Status> {
        self.list(request, &self.answers.revocations)
    }

    async fn rotate_certificates(
        &self,
        request: Request<RotateCertificatesRequest>,
    ) -> Result<Response<Self::RotateCertificatesStream>, Status> {
        self.stream(request, &self.answers.rotation)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.list(request, &self.answers.status)
    }
}

/// Compares with the file of this name; `UPDATE_GOLDEN=1` writes it instead.
pub(crate) fn golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name} differs; when that is meant, run the tests with UPDATE_GOLDEN=1 and tell CHANGELOG.md");
}
