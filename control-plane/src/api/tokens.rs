//! `Admin`, as far as it is about join tokens that were made already.

use outrider_proto::v1;
use tonic::Status;

use super::{Operators, unavailable};
use crate::{clock, compile::identity, operators::Note, store::Author};

impl Operators {
    /// Takes back what nobody has used.
    pub(super) async fn tokens_revoked(
        &self,
        request: v1::RevokeTokensRequest,
        (author, note): (&Author, &Note),
    ) -> Result<v1::RevokeTokensResponse, Status> {
        note.subject(&request.identity);
        let identity = identity(&request.identity, self.trust_domain()).map_err(Status::invalid_argument)?;
        let identity = identity.ok_or_else(|| Status::invalid_argument("name an identity"))?.to_string();
        let revoked = self.store.revoke_tokens(&identity, author, clock::now()).await;
        let revoked = revoked.map_err(|error| unavailable("tokens", &error))?;
        if revoked == 0 {
            return Err(Status::not_found(format!("no unused join token for `{identity}`")));
        }
        tracing::info!(identity, revoked, who = author.who, "join tokens revoked");
        Ok(v1::RevokeTokensResponse { revoked, identity })
    }
}
