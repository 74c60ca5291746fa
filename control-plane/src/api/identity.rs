//! `Identity`: the wire's side of [`crate::issue`].

use outrider_proto::v1::{IssueRequest, IssueResponse, identity_server::Identity};
use tonic::{Request, Response, Status};

use super::peer;
use crate::{clock, issue::Issuance, registry::bundle};

/// The service.
pub(crate) struct Identities(pub(crate) Issuance);

#[tonic::async_trait]
impl Identity for Identities {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let peer = peer(&request).cloned();
        let issued = self.0.issue(request.get_ref(), peer.as_ref(), clock::now()).await.map_err(|error| error.outward())?;
        Ok(Response::new(IssueResponse {
            chain: issued.leaf.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            bundle: Some(bundle(&self.0.authority)),
            identity: issued.identity.to_string(),
            not_before: issued.leaf.not_before,
            not_after: issued.leaf.not_after,
            serial: issued.leaf.serial,
        }))
    }
}
