//! The calls of the Workload API.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use outrider_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
    spiffe_workload_api_server::SpiffeWorkloadApi,
};
use outrider_runtime::{Drain, Tasks};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Claims, JwtKeys, Tokens, token::MAX_TOKEN};
use crate::{
    identity::{Svid, Svids},
    tls::Trust,
};

/// Most audiences of one token.
const MAX_AUDIENCES: usize = 16;
/// Longest audience.
const MAX_AUDIENCE: usize = 256;

/// What programs are told about.
#[derive(Clone, Debug)]
pub struct Identities {
    /// The certificate in use.
    pub svids: Arc<Svids>,
    /// Trust anchors.
    pub trust: Arc<Trust>,
    /// Keys of tokens.
    pub jwt_keys: Arc<JwtKeys>,
    /// Tokens of our own.
    pub tokens: Arc<Tokens>,
}

/// The service.
#[derive(Clone, Debug)]
pub struct WorkloadApi {
    identities: Identities,
    tasks: Tasks,
    drain: Drain,
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

impl WorkloadApi {
    /// An API over these identities; its streams are tasks, and end at drain.
    pub fn new(identities: Identities, tasks: Tasks, drain: Drain) -> Self {
        Self { identities, tasks, drain }
    }

    /// Tells what `look` sees, at once and whenever it is another thing after a change, until it fails or nobody listens.
    fn follow<T: PartialEq + Clone + Send + Sync + 'static>(
        &self,
        mut changes: [watch::Receiver<u64>; 2],
        look: impl Fn(&Identities) -> Result<T, Status> + Send + 'static,
    ) -> Response<Stream<T>> {
        let (send, stream) = mpsc::channel(1);
        let (identities, drain) = (self.identities.clone(), self.drain.clone());
        self.tasks.spawn_scoped(async move {
            let mut told = None;
            loop {
                changes.iter_mut().for_each(watch::Receiver::mark_unchanged);
                let seen = look(&identities);
                let failed = seen.is_err();
                if failed || told.as_ref() != seen.as_ref().ok() {
                    told = seen.as_ref().ok().cloned();
                    if send.send(seen).await.is_err() || failed {
                        return;
                    }
                }
                let [first, second] = &mut changes;
                let end = identities.svids.latest().map(|svid| svid.deadline());
                tokio::select! {
                    Ok(()) = first.changed() => {}
                    Ok(()) = second.changed() => {}
                    () = async { match end { Some(end) => tokio::time::sleep_until(end).await, None => std::future::pending().await } } => {}
                    () = send.closed() => return,
                    () = drain.stopping() => return,
                }
            }
        });
        Response::new(ReceiverStream::new(stream))
    }
}

impl Identities {
    /// The identity while it is valid: an expired one is none, and a revoked one is given to nobody.
    fn svid(&self) -> Result<Arc<Svid>, Status> {
        if self.trust.is_disowned() {
            return Err(Status::permission_denied("the identity was revoked"));
        }
        self.svids.valid().ok_or_else(|| Status::permission_denied("no identity issued"))
    }

    fn anchors(&self) -> Result<(String, Vec<u8>), Status> {
        let bundle = self.trust.bundle().ok_or_else(|| Status::permission_denied("no identity issued"))?;
        Ok((format!("spiffe://{}", bundle.trust_domain), bundle.roots.concat()))
    }

    fn x509_svid(&self) -> Result<X509svidResponse, Status> {
        let svid = self.svid()?;
        let svid = X509svid {
            spiffe_id: svid.leaf.id.to_string(),
            x509_svid: svid.chain().concat(),
            x509_svid_key: svid.key().to_vec(),
            bundle: self.anchors()?.1,
            hint: String::new(),
        };
        Ok(X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles: HashMap::new() })
    }

    fn x509_bundles(&self) -> Result<X509BundlesResponse, Status> {
        self.svid()?;
        Ok(X509BundlesResponse { crl: Vec::new(), bundles: HashMap::from([self.anchors()?]) })
    }

    fn jwt_bundles(&self) -> Result<JwtBundlesResponse, Status> {
        self.svid()?;
        let keys = self.jwt_keys.current();
        let bundle = keys.as_ref().as_ref().map(|keys| (format!("spiffe://{}", keys.trust_domain), keys.to_json()));
        Ok(JwtBundlesResponse { bundles: bundle.into_iter().collect() })
    }
}

/// Refuses calls without the metadata that no forwarded request carries by accident.
fn admitted<T>(request: &Request<T>) -> Result<(), Status> {
    let mut values = request.metadata().get_all("workload.spiffe.io").iter();
    match (values.next().map(|value| value.as_encoded_bytes() == b"true"), values.next()) {
        (Some(true), None) => Ok(()),
        _ => Err(Status::invalid_argument("security header missing from request")),
    }
}

fn audience(audiences: Vec<String>) -> Result<BTreeSet<String>, Status> {
    let good = |one: &String| (1..=MAX_AUDIENCE).contains(&one.len()) && !one.chars().any(char::is_control);
    if audiences.is_empty() || audiences.len() > MAX_AUDIENCES || !audiences.iter().all(good) {
        let wanted = format!("name 1 to {MAX_AUDIENCES} audiences of 1 to {MAX_AUDIENCE} bytes");
        return Err(Status::invalid_argument(wanted));
    }
    Ok(audiences.into_iter().collect())
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Stream<X509svidResponse>;
    type FetchX509BundlesStream = Stream<X509BundlesResponse>;
    type FetchJWTBundlesStream = Stream<JwtBundlesResponse>;

    async fn fetch_x509svid(&self, request: Request<X509svidRequest>) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        admitted(&request)?;
        self.identities.svid()?;
        let changes = [self.identities.svids.changes(), self.identities.trust.changes()];
        Ok(self.follow(changes, Identities::x509_svid))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        admitted(&request)?;
        self.identities.svid()?;
        let changes = [self.identities.svids.changes(), self.identities.trust.changes()];
        Ok(self.follow(changes, Identities::x509_bundles))
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        admitted(&request)?;
        let JwtsvidRequest { audience: audiences, spiffe_id } = request.into_inner();
        let audience = audience(audiences)?;
        let svid = self.identities.svid()?;
        let own = svid.leaf.id.as_str();
        if !spiffe_id.is_empty() && spiffe_id != own {
            return Err(Status::permission_denied("no such identity issued"));
        }
        let token = self.identities.tokens.get(own, &audience).await.map_err(|error| {
            tracing::warn!(error = outrider_runtime::tasks::chain(&error), "no token for the own program");
            Status::unavailable("no token can be had now")
        })?;
        let svid = Jwtsvid { spiffe_id: own.to_owned(), svid: token, hint: String::new() };
        Ok(Response::new(JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        admitted(&request)?;
        self.identities.svid()?;
        let changes = [self.identities.svids.changes(), self.identities.jwt_keys.changes()];
        Ok(self.follow(changes, Identities::jwt_bundles))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        admitted(&request)?;
        self.identities.svid()?;
        let ValidateJwtsvidRequest { audience: wanted, svid: token } = request.into_inner();
        audience(vec![wanted.clone()])?;
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Err(Status::invalid_argument("no token, or too long a one"));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let keys = self.identities.jwt_keys.current();
        let keys = keys.as_ref().as_ref().ok_or_else(|| Status::invalid_argument("there are no keys to check tokens by"))?;
        let claims = Claims::read(&token, &wanted, keys, now).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let spiffe_id = claims.subject.to_string();
        let fields = claims.all.into_iter().map(|(name, claim)| (name, value(claim))).collect();
        Ok(Response::new(ValidateJwtsvidResponse { spiffe_id, claims: Some(prost_types::Struct { fields }) }))
    }
}

/// JSON as the wire has it. What is nested too deep did not parse before.
fn value(json: serde_json::Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(is) => Kind::BoolValue(is),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(all) => Kind::ListValue(prost_types::ListValue { values: all.into_iter().map(value).collect() }),
        serde_json::Value::Object(all) => {
            Kind::StructValue(prost_types::Struct { fields: all.into_iter().map(|(name, json)| (name, value(json))).collect() })
        }
    };
    prost_types::Value { kind: Some(kind) }
}
