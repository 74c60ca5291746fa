//! Getting the first certificate and renewing it for as long as the agent lives.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outrider_proto::v1::{
    IssueRequest, IssueResponse, JoinToken as WireToken, Renewal as WireRenewal, identity_client::IdentityClient,
    issue_request::Evidence,
};
use outrider_runtime::{Drain, Gate};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tonic::{Code, transport::Channel};
use zeroize::Zeroizing;

use super::{JoinToken, SigningRequest, Svid, SvidError, Svids, renew_at, retry_after};
use crate::{
    config::{ControlPlane, ControlPlaneError, SealError, SealedFile},
    telemetry::Metrics,
    tls::{Trust, TrustError},
};

/// Time for the control plane to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A certificate cannot be got.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No certificate on disk, and no token.
    #[error(
        "this agent has no certificate yet: give it a join token (`outrider token create --identity NAMESPACE/NAME`, then `--token`)"
    )]
    NoToken,
    /// No control plane.
    #[error(transparent)]
    ControlPlane(#[from] ControlPlaneError),
    /// The control plane says no.
    #[error("the control plane refused: {0}")]
    Refused(String),
    /// The control plane cannot say now; another replica may.
    #[error("the control plane cannot issue now: {0}")]
    Unavailable(String),
    /// The answer is no certificate for our key.
    #[error("unusable certificate: {0}")]
    Svid(#[from] SvidError),
    /// The answer's trust bundle cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The certificate is for somebody else.
    #[error("the certificate is for `{got}`, not for `{expected}`")]
    Other {
        /// What `--identity` says.
        expected: String,
        /// What was issued.
        got: String,
    },
    /// It cannot be kept.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Certificate and key as they are kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Unix seconds.
    obtained: u64,
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
    trust_domain: String,
    roots: Vec<Vec<u8>>,
}

/// Keeps this agent's certificate fresh.
#[derive(Debug)]
pub struct Renewal {
    /// Where the control plane is.
    pub control_plane: ControlPlane,
    /// Where the certificate goes.
    pub svids: Arc<Svids>,
    /// Where the trust bundle of an answer goes.
    pub trust: Arc<Trust>,
    /// Where it is kept.
    pub file: SealedFile,
    /// Identity that must come out, as the user wrote it.
    pub expected: Option<String>,
    /// Open while there is a valid certificate.
    pub gate: Gate,
    /// Woken when a renewal is asked for.
    pub now: Arc<Notify>,
    /// Metrics.
    pub metrics: Metrics,
    /// Ends the task.
    pub drain: Drain,
}

impl Renewal {
    /// Gets hold of a certificate: the one on disk while it is valid, else a new one for the join token.
    ///
    /// # Errors
    /// When there is neither, or the token is not taken.
    pub async fn start(&self, token: Option<&JoinToken>) -> Result<(), IdentityError> {
        match self.load() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the certificate on disk is not used"),
        }
        let token = token.ok_or(IdentityError::NoToken)?;
        let request = SigningRequest::new()?;
        let answer = self.join(token, &request).await?;
        self.take(request, answer)
    }

    /// Asks one replica after the other, as long as each says that it cannot issue now.
    async fn join(&self, token: &JoinToken, request: &SigningRequest) -> Result<IssueResponse, IdentityError> {
        let mut left = self.control_plane.replicas();
        loop {
            let channel = self.control_plane.join(token).await?;
            let evidence = Evidence::JoinToken(WireToken { token: token.as_str().to_owned() });
            left = left.saturating_sub(1);
            match self.issue(channel, request, evidence).await {
                Err(IdentityError::Unavailable(reason)) if left > 0 => {
                    tracing::warn!(reason, "this replica of the control plane cannot issue now, asking another");
                    self.control_plane.turn_away();
                }
                answer => return answer,
            }
        }
    }

    /// Puts the certificate on disk to use. `false` when there is none that is valid.
    fn load(&self) -> Result<bool, IdentityError> {
        let Some(bytes) = self.file.read()? else { return Ok(false) };
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| IdentityError::Refused(error.to_string()))?;
        let svid = Svid::new(kept.chain, Zeroizing::new(kept.key), UNIX_EPOCH + Duration::from_secs(kept.obtained))?;
        if !svid.is_valid(SystemTime::now()) {
            tracing::warn!(identity = %svid.leaf.id, "the certificate on disk has expired: a new join token is needed");
            return Ok(false);
        }
        self.check(&svid)?;
        let bundle = outrider_proto::v1::TrustBundle { trust_domain: kept.trust_domain, roots: kept.roots };
        self.trust.replace(&bundle)?;
        self.put_to_use(svid);
        Ok(true)
    }

    fn check(&self, svid: &Svid) -> Result<(), IdentityError> {
        let Some(expected) = &self.expected else { return Ok(()) };
        let id = &svid.leaf.id;
        let short = id.namespace().zip(id.service_account()).map(|(namespace, account)| format!("{namespace}/{account}"));
        if id.as_str() == expected || short.as_ref() == Some(expected) {
            return Ok(());
        }
        Err(IdentityError::Other { expected: expected.clone(), got: id.to_string() })
    }

    async fn issue(
        &self,
        channel: Channel,
        request: &SigningRequest,
        evidence: Evidence,
    ) -> Result<IssueResponse, IdentityError> {
        let expected_identity = self.expected.clone().unwrap_or_default();
        let call = IssueRequest { csr: request.csr.clone(), evidence: Some(evidence), expected_identity };
        let mut client = IdentityClient::new(channel);
        let answer = tokio::time::timeout(ANSWER, client.issue(call)).await;
        let answer = answer.map_err(|_| IdentityError::Unavailable("no answer in time".to_owned()))?;
        answer.map(tonic::Response::into_inner).map_err(|status| match status.code() {
            Code::Unavailable => IdentityError::Unavailable(status.message().to_owned()),
            code => IdentityError::Refused(format!("{} ({code:?})", status.message())),
        })
    }

    fn take(&self, request: SigningRequest, answer: IssueResponse) -> Result<(), IdentityError> {
        let svid = request.certified(answer.chain)?;
        self.check(&svid)?;
        // Later the stream says who is believed, and an answer that was under way meanwhile does not take that back.
        if let Some(bundle) = answer.bundle.as_ref().filter(|_| self.trust.bundle().is_none()) {
            self.trust.replace(bundle)?;
        }
        let bundle = self.trust.bundle().unwrap_or_default();
        let obtained = svid.obtained.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let kept = Kept {
            obtained,
            chain: svid.chain().to_vec(),
            key: svid.key().to_vec(),
            trust_domain: bundle.trust_domain,
            roots: bundle.roots,
        };
        let bytes = Zeroizing::new(serde_json::to_vec(&kept).unwrap_or_default());
        // Not kept means lost at the next restart: heard of, but no reason to go without now.
        if let Err(error) = self.file.write(&bytes) {
            tracing::error!(%error, "the new certificate could not be kept");
        }
        self.put_to_use(svid);
        Ok(())
    }

    fn put_to_use(&self, svid: Svid) {
        let seconds = svid.leaf.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.metrics.certificate(svid.leaf.not_before, svid.leaf.not_after);
        tracing::info!(identity = %svid.leaf.id, serial = svid.leaf.serial, not_after = seconds, "certificate in use");
        self.svids.replace(Arc::new(svid));
        self.gate.open();
    }

    async fn renew(&self) -> Result<(), IdentityError> {
        let request = SigningRequest::new()?;
        let channel = self.control_plane.connect().await?;
        let answer = self.issue(channel, &request, Evidence::Renewal(WireRenewal {})).await?;
        self.take(request, answer)
    }

    /// Renews at half of each certificate's life until drain. While renewal fails the old one stays in use until its end;
    /// then there is no identity, and nothing is served.
    ///
    /// # Errors
    /// None: a failed renewal is tried again.
    pub async fn run(self) -> Result<(), IdentityError> {
        let mut failures = 0;
        let mut jitter = fastrand::f64();
        while !self.drain.is_stopping() {
            let Some(svid) = self.svids.latest() else { return Ok(()) };
            let now = SystemTime::now();
            if !svid.is_valid(now) {
                self.gate.close();
            }
            let due = renew_at(svid.obtained, svid.leaf.not_after, jitter).duration_since(now).unwrap_or(Duration::ZERO);
            let pause = if failures == 0 { due } else { retry_after(failures, fastrand::f64()) };
            let expiry = svid.leaf.not_after.duration_since(now).unwrap_or(Duration::MAX / 4);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.now.notified() => {}
                () = tokio::time::sleep(expiry), if svid.is_valid(now) => {
                    tracing::error!(identity = %svid.leaf.id, "the certificate has expired: nothing is served until it is renewed");
                    continue;
                }
                () = self.drain.stopping() => return Ok(()),
            }
            match self.renew().await {
                Ok(()) => {
                    failures = 0;
                    jitter = fastrand::f64();
                    self.metrics.renewals.inc();
                }
                Err(error) => {
                    failures += 1;
                    self.control_plane.turn_away();
                    self.metrics.renewal_failures.inc();
                    let left = svid.leaf.not_after.duration_since(SystemTime::now()).unwrap_or_default();
                    let seconds = left.as_secs();
                    if left < svid.leaf.not_after.duration_since(svid.obtained).unwrap_or_default() / 4 {
                        tracing::error!(%error, failures, seconds, "renewal fails, and the current certificate ends soon");
                    } else {
                        tracing::warn!(%error, failures, seconds, "renewal failed: the current certificate stays in use");
                    }
                }
            }
        }
        Ok(())
    }
}
