//! What all kinds of evidence have in common: each has an attestor, which says whom it proves. A new kind is one more of them in
//! [`Attestors`]; the page that issues knows none by name.

use std::{fmt, sync::Arc};

use outrider_proto::v1::issue_request::Evidence;

use super::{AttestError, Attested};
use crate::peer::Peer;

/// What somebody who asks for a leaf brings along.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Presented<'a> {
    pub(crate) evidence: &'a Evidence,
    /// Who the connection's certificate names, if there is one.
    pub(crate) peer: Option<&'a Peer>,
    /// Who it believes to be; empty when it does not say.
    pub(crate) expected: &'a str,
    /// Unix seconds.
    pub(crate) now: i64,
}

/// Looks at one kind of evidence.
#[tonic::async_trait]
pub(crate) trait Attestor: fmt::Debug + Send + Sync {
    /// The word for this kind in the record of issuances and in metrics: one of a closed set.
    fn word(&self) -> &'static str;

    /// Whether a piece of evidence is of this kind.
    fn takes(&self, evidence: &Evidence) -> bool;

    /// Says whom the evidence proves. It uses nothing up: what must be used up goes with the answer, and is used up by the
    /// transaction that records the leaf.
    ///
    /// # Errors
    /// When the evidence proves nobody, or somebody else than whom the caller believes to be.
    async fn attest(&self, presented: &Presented<'_>) -> Result<Attested, AttestError>;
}

/// The kinds of evidence that this control plane takes. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Attestors(Arc<[Box<dyn Attestor>]>);

impl Attestors {
    pub(crate) fn new(kinds: Vec<Box<dyn Attestor>>) -> Self {
        Self(kinds.into())
    }

    /// Who looks at this evidence; `None` when nobody does.
    pub(crate) fn of(&self, evidence: &Evidence) -> Option<&dyn Attestor> {
        self.0.iter().find(|one| one.takes(evidence)).map(|one| &**one)
    }
}

#[cfg(test)]
mod tests {
    use outrider_policy::SpiffeId;
    use outrider_proto::v1::{JoinToken, Renewal};

    use super::*;
    use crate::store::Redeem;

    /// As a cluster would: the text of a token names its bearer.
    #[derive(Debug)]
    struct Cluster;

    #[tonic::async_trait]
    impl Attestor for Cluster {
        fn word(&self) -> &'static str {
            "cluster"
        }

        fn takes(&self, evidence: &Evidence) -> bool {
            matches!(evidence, Evidence::JoinToken(token) if token.token.starts_with("cluster:"))
        }

        async fn attest(&self, presented: &Presented<'_>) -> Result<Attested, AttestError> {
            let Evidence::JoinToken(token) = presented.evidence else { return Err(AttestError::Malformed) };
            let name = token.token.strip_prefix("cluster:").ok_or(AttestError::Malformed)?;
            let identity = SpiffeId::new(&format!("spiffe://td/ns/a/sa/{name}")).map_err(|_| AttestError::Unknown)?;
            Ok(Attested { identity, evidence: self.word(), redeem: Redeem::Nothing })
        }
    }

    #[tokio::test]
    async fn evidence_goes_to_the_attestor_that_takes_it_and_what_nobody_takes_proves_nobody() {
        let attestors = Attestors::new(vec![Box::new(Cluster)]);
        let evidence = Evidence::JoinToken(JoinToken { token: "cluster:web".into() });
        let presented = Presented { evidence: &evidence, peer: None, expected: "", now: 0 };
        let attested = attestors.of(&evidence).unwrap().attest(&presented).await.unwrap();
        assert_eq!((attested.identity.as_str(), attested.evidence), ("spiffe://td/ns/a/sa/web", "cluster"));
        assert!(attestors.of(&Evidence::Renewal(Renewal {})).is_none());
    }
}
