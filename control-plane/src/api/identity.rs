//! `Identity`: the wire's side of [`crate::issue`].

use outrider_proto::v1::{IssueJwtRequest, IssueJwtResponse, IssueRequest, IssueResponse, TrustBundle, identity_server::Identity};
use tonic::{Request, Response, Status};

use super::peer;
use crate::{clock, issue::Issuance};

/// The service.
pub(crate) struct Identities(pub(crate) Issuance);

#[tonic::async_trait]
impl Identity for Identities {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let peer = peer(&request).cloned();
        let issued = self.0.issue(request.get_ref(), peer.as_ref(), clock::now()).await.map_err(|error| error.outward())?;
        let roots = self.0.authority.roots().iter().map(|root| root.to_vec()).collect();
        Ok(Response::new(IssueResponse {
            chain: issued.leaf.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            bundle: Some(TrustBundle { trust_domain: self.0.authority.trust_domain().to_string(), roots }),
            identity: issued.identity.to_string(),
            not_before: issued.leaf.not_before,
            not_after: issued.leaf.not_after,
            serial: issued.leaf.serial,
        }))
    }

    async fn issue_jwt(&self, _request: Request<IssueJwtRequest>) -> Result<Response<IssueJwtResponse>, Status> {
        Err(Status::unimplemented("this control plane signs no tokens"))
    }
}
