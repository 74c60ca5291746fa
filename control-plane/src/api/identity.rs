//! `Identity`: the wire's side of [`crate::issue`].

use outrider_proto::v1::{IssueJwtRequest, IssueJwtResponse, IssueRequest, IssueResponse, identity_server::Identity};
use std::{sync::Arc, time::Instant};
use tonic::{Request, Response, Status};

use super::{known_peer, peer, unavailable};
use crate::{
    clock,
    issue::Issuance,
    jwt::{Audience, JwtKeys},
    limit::Limit,
    registry::bundle,
};

/// Tokens that one identity may ask for at once: all replicas of a service ask under one identity.
const TOKENS_AT_ONCE: u32 = 200;
/// Tokens that one identity may ask for in a second after that.
const TOKENS_A_SECOND: u32 = 50;

/// The service.
pub(crate) struct Identities {
    issuance: Issuance,
    jwt_keys: Arc<JwtKeys>,
    limit: Limit,
}

impl Identities {
    /// The service over these.
    pub(crate) fn new(issuance: Issuance, jwt_keys: Arc<JwtKeys>) -> Self {
        Self { issuance, jwt_keys, limit: Limit::new(TOKENS_AT_ONCE, TOKENS_A_SECOND) }
    }
}

#[tonic::async_trait]
impl Identity for Identities {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let peer = peer(&request).cloned();
        let issued =
            self.issuance.issue(request.get_ref(), peer.as_ref(), clock::now()).await.map_err(|error| error.outward())?;
        Ok(Response::new(IssueResponse {
            chain: issued.leaf.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            bundle: Some(bundle(&self.issuance.authority)),
            identity: issued.identity.to_string(),
            not_before: issued.leaf.not_before,
            not_after: issued.leaf.not_after,
            serial: issued.leaf.serial,
        }))
    }

    async fn issue_jwt(&self, request: Request<IssueJwtRequest>) -> Result<Response<IssueJwtResponse>, Status> {
        let (peer, now) = (known_peer(&request)?, clock::now());
        if !self.limit.admit(&peer.identity, Instant::now()) {
            return Err(Status::resource_exhausted(format!("`{}` asks for tokens too often", peer.identity)));
        }
        let audience = Audience::read(request.into_inner().audience);
        let audience = audience.ok_or_else(|| Status::invalid_argument("name 1 to 16 audiences of 1 to 256 bytes"))?;
        self.issuance.revoked.admit(Some(&peer), &peer.identity).map_err(|error| error.outward())?;
        self.issuance.connections.attest_peer(&peer, now).await.map_err(|error| error.outward())?;
        let token = self.jwt_keys.sign(&peer.identity, &audience, now).map_err(|error| unavailable("token", &error))?;
        Ok(Response::new(IssueJwtResponse {
            token: token.text,
            identity: peer.identity.to_string(),
            issued_at: token.issued,
            expires_at: token.expires,
        }))
    }
}
