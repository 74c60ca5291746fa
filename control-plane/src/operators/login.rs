//! From a one-time token to a certificate, and from that to the next.

use std::time::Instant;

use outrider_proto::v1::{LoginRequest, LoginResponse, RenewLoginRequest, operator_server::Operator};
use tonic::{Request, Response, Status};

use super::{OperatorName, Role, Roster};
use crate::{
    api::{known_peer, unavailable},
    attest::{Attested, TokenText},
    ca::{Authority, SigningRequest},
    clock,
    issue::Issuance,
    limit::Limit,
    store::{Author, OperatorRow, Redeem},
};

/// Text before the secret of a login token.
const VERSION: &str = "orl1";
/// Certificates that one operator may ask for at once.
const AT_ONCE: u32 = 10;

/// The service.
#[derive(Clone)]
pub(crate) struct Logins {
    pub(crate) issuance: Issuance,
    pub(crate) roster: Roster,
    limit: std::sync::Arc<Limit>,
}

impl Logins {
    /// Logins of the operators of this roster.
    pub(crate) fn new(issuance: Issuance, roster: Roster) -> Self {
        Self { issuance, roster, limit: Limit::new(AT_ONCE, 1).into() }
    }

    /// Makes an operator, or changes one, and a login token: its text, and its end.
    pub(crate) async fn invite(
        &self,
        name: &OperatorName,
        role: Role,
        ttl: i64,
        author: &Author,
    ) -> Result<(String, i64), Status> {
        let now = clock::now();
        let secret = crate::attest::Secret::random().ok_or_else(|| Status::unavailable("the system gave no random bytes"))?;
        let text = TokenText { secret, pin: self.issuance.authority.root_pin() };
        let row = OperatorRow {
            name: name.as_str().to_owned(),
            role: role.as_str().to_owned(),
            created: now,
            login_expires: now + ttl,
        };
        let put = self.issuance.store.put_operator(&row, &text.secret.hash(), author).await;
        put.map_err(|error| unavailable("operator", &error))?;
        self.refresh().await;
        Ok((text.format_as(VERSION), row.login_expires))
    }

    /// Removes an operator: calls are refused from now on, and connections end.
    pub(crate) async fn remove(&self, name: &OperatorName, author: &Author) -> Result<bool, Status> {
        let removed = self.issuance.store.remove_operator(name.as_str(), author, clock::now()).await;
        let removed = removed.map_err(|error| unavailable("operator", &error))?;
        self.refresh().await;
        Ok(removed)
    }

    async fn refresh(&self) {
        if let Err(error) = self.roster.refresh().await {
            // The regular look comes within a second.
            tracing::warn!(error = outrider_runtime::tasks::chain(&error), "operators not looked at again");
        }
    }

    async fn certify(
        &self,
        name: &OperatorName,
        role: &str,
        csr: &[u8],
        evidence: &'static str,
    ) -> Result<LoginResponse, Status> {
        let (authority, now) = (&self.issuance.authority, clock::now());
        let identity = name.identity(authority.trust_domain());
        let identity = identity.ok_or_else(|| Status::unavailable("this name makes no identity"))?;
        if !self.limit.admit(&identity, Instant::now()) {
            return Err(Status::resource_exhausted("too many certificates: try again in a second"));
        }
        let request = SigningRequest::read(csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        request.asks_only_for(&identity).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let attested = Attested { identity: identity.clone(), evidence, redeem: Redeem::Nothing };
        let sign = |authority: &Authority| authority.sign_operator(&request, &identity, now);
        let leaf = self.issuance.sign_and_record(&attested, now, sign).await.map_err(|error| error.outward())?;
        tracing::info!(%identity, evidence, serial = leaf.serial, "operator's certificate issued");
        Ok(LoginResponse {
            chain: leaf.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            roots: authority.roots().iter().map(|root| root.to_vec()).collect(),
            trust_domain: authority.trust_domain().to_string(),
            identity: identity.to_string(),
            role: role.to_owned(),
            not_after: leaf.not_after,
        })
    }
}

#[tonic::async_trait]
impl Operator for Logins {
    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<LoginResponse>, Status> {
        // Who holds no right secret learns nothing.
        let refused = || Status::unauthenticated("the login token is not accepted");
        let LoginRequest { token, csr } = request.into_inner();
        let token = TokenText::parse_as(VERSION, token.trim()).ok_or_else(refused)?;
        // Before the token is used up: a request that cannot succeed should not cost it.
        SigningRequest::read(&csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let found = self.issuance.store.redeem_login(&token.secret.hash(), clock::now()).await;
        let (name, role) = found.map_err(|error| unavailable("login", &error))?.ok_or_else(refused)?;
        let name: OperatorName = name.parse().map_err(|_| refused())?;
        self.certify(&name, &role, &csr, "operator-login").await.map(Response::new)
    }

    async fn renew_login(&self, request: Request<RenewLoginRequest>) -> Result<Response<LoginResponse>, Status> {
        let peer = known_peer(&request)?;
        self.issuance.connections.attest_peer(&peer, clock::now()).await.map_err(|error| error.outward())?;
        let name = OperatorName::of(&peer.identity).ok_or_else(|| Status::unauthenticated("not an operator's certificate"))?;
        let role = self.roster.role(&name).await.map_err(|error| unavailable("operator", &error))?;
        let role = role.ok_or_else(|| Status::permission_denied("this operator was removed"))?;
        self.certify(&name, role.as_str(), &request.into_inner().csr, "operator-renewal").await.map(Response::new)
    }
}
