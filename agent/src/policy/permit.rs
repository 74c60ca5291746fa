//! A permit: somebody may do something, by this rule, for as long as the policy says so and the certificate lasts.

use std::{net::IpAddr, ops::ControlFlow, rc::Rc, sync::Arc};

use outrider_policy::{Call, Compiled, Decision, Effect, HttpCall, MtlsMode, Target};
use tokio::time::Instant;

use super::{Over, PolicyBook};
use crate::{
    alarm,
    http::RequestHead,
    identity::Peer,
    refusal::{Reason, Refusal},
    tls::Tenure,
};

/// What a decision was, for records.
#[derive(Clone, Debug)]
pub struct Verdict {
    compiled: Arc<Compiled>,
    decision: Decision,
}

impl Verdict {
    /// `namespace/policy/rule` that decided; empty when nothing matched.
    pub fn rule(&self) -> &str {
        self.decision.rule.map(|rule| self.compiled.rule_name(rule)).unwrap_or_default()
    }

    /// Revision of the policy that decided.
    pub fn revision(&self) -> u64 {
        self.decision.revision
    }

    /// The audit rules that held, `namespace/policy/rule` each.
    pub fn audited(&self) -> impl Iterator<Item = &str> {
        self.decision.audited.iter().map(|rule| self.compiled.rule_name(rule))
    }

    /// `allow` or `deny`.
    pub fn effect(&self) -> Effect {
        self.decision.effect
    }

    /// Names of the fields that policies read, in lower case.
    pub fn headers_read(&self) -> &[Box<str>] {
        self.compiled.headers_read()
    }
}

/// A call that was denied, and why.
#[derive(Debug)]
pub struct Denied {
    /// What the caller gets.
    pub refusal: Refusal,
    /// What decided.
    pub verdict: Option<Verdict>,
}

/// A call that was allowed. Only [`PolicyBook::authorize`] makes one.
#[derive(Debug)]
pub struct Permit {
    book: Arc<PolicyBook>,
    target: usize,
    /// Of what is in force, when it was decided.
    version: u64,
    peer: Rc<Peer>,
    head: Option<Rc<RequestHead>>,
    verdict: Verdict,
}

impl PolicyBook {
    /// Decides a call to a port of an own service: an HTTP request, or with `head` absent an opaque connection.
    ///
    /// # Errors
    /// When no rule allows it or one denies it, or what a rule allows is over the limit.
    pub fn authorize(self: &Arc<Self>, target: usize, peer: &Rc<Peer>, head: Option<&Rc<RequestHead>>) -> Result<Permit, Denied> {
        // The worker's clock: a system call's worth of time is saved, and a tick is nothing to a certificate.
        if alarm::instant() >= peer.deadline() {
            let refusal = Refusal::new(Reason::PolicyRevoked, "the caller's certificate ended");
            return Err(Denied { refusal, verdict: None });
        }
        // Read before the decision: a change in between is seen as a change.
        let version = self.version();
        if let Some(refusal) = self.trust.refusal(peer) {
            return Err(Denied { refusal, verdict: None });
        }
        let verdict = self.decide(target, peer, head.map(|head| &**head));
        match verdict {
            Ok(verdict) if verdict.effect() == Effect::Allow => {
                if let Err(Over(seconds)) = self.count(target, peer.id()) {
                    let refusal = Refusal::new(Reason::RateLimited, "over the limit of the policy").retry_after(seconds);
                    return Err(Denied { refusal, verdict: Some(verdict) });
                }
                Ok(Permit { book: self.clone(), target, version, peer: peer.clone(), head: head.cloned(), verdict })
            }
            Ok(verdict) => {
                let reason = if verdict.compiled.is_empty() { Reason::NoPolicy } else { Reason::PolicyDenied };
                Err(Denied { refusal: denial(reason, &verdict), verdict: Some(verdict) })
            }
            Err(refusal) => Err(Denied { refusal, verdict: None }),
        }
    }

    fn decide(&self, target: usize, peer: &Peer, head: Option<&RequestHead>) -> Result<Verdict, Refusal> {
        let none = || Refusal::new(Reason::NoPolicy, "no policy is in force for this port");
        let compiled = self.compiled(target).ok_or_else(none)?;
        let described = self.targets().get(target).ok_or_else(none)?;
        if peer.id().is_none() && compiled.mtls_mode() != MtlsMode::Permissive {
            return Err(Refusal::new(Reason::PlaintextRefused, "plaintext, and the mode of this port is Strict"));
        }
        let decision = compiled.decide(&call(described, peer, head));
        Ok(Verdict { compiled, decision })
    }
}

fn call<'a>(target: &Target, peer: &'a Peer, head: Option<&'a RequestHead>) -> Call<'a> {
    let source_ip: IpAddr = peer.address().ip().to_canonical();
    let http = head.map(|head| HttpCall {
        method: head.method.as_str(),
        host: &head.host,
        path: head.path(),
        query: head.query(),
        headers: &head.fields,
    });
    Call { source: peer.id(), source_ip, port: target.port, protocol: target.protocol, http }
}

fn denial(reason: Reason, verdict: &Verdict) -> Refusal {
    let detail = match verdict.rule() {
        "" if verdict.compiled.is_empty() => {
            verdict.compiled.deny_all_reason().unwrap_or("no policy applies to this port").to_owned()
        }
        "" => format!("no rule allows it (revision {})", verdict.revision()),
        rule => format!("denied by `{rule}` (revision {})", verdict.revision()),
    };
    Refusal::new(reason, detail)
}

impl Permit {
    /// What decided.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Who it was given to.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Ends when the permit no longer holds: a change of policy denies what it allowed, the peer is no longer believed, or its
    /// certificate ended.
    pub async fn revoked(&mut self) -> Refusal {
        // The worker wakes everybody when a policy, or who is believed, has changed.
        alarm::until(|| self.ended()).await
    }

    /// Why it no longer holds, or until when nothing has to be looked at.
    fn ended(&mut self) -> ControlFlow<Refusal, Instant> {
        if let Some(refusal) = self.book.trust.refusal(&self.peer) {
            return ControlFlow::Break(refusal);
        }
        if alarm::instant() >= self.peer.deadline() {
            return ControlFlow::Break(Refusal::new(Reason::PolicyRevoked, "the caller's certificate ended"));
        }
        let version = self.book.version();
        if version == self.version {
            return ControlFlow::Continue(self.book.trust.deadline(&self.peer));
        }
        self.version = version;
        match self.book.decide(self.target, &self.peer, self.head.as_deref()) {
            Ok(verdict) if verdict.effect() == Effect::Allow => {
                self.verdict = verdict;
                ControlFlow::Continue(self.book.trust.deadline(&self.peer))
            }
            Ok(verdict) => ControlFlow::Break(denial(Reason::PolicyRevoked, &verdict)),
            Err(refusal) => ControlFlow::Break(Refusal::new(Reason::PolicyRevoked, refusal.detail())),
        }
    }
}

/// Ends when a stream may not go on: its permit, where there is one, no longer holds, or the certificates of the connection
/// that it comes from have ended, or are no longer believed, or it is `late`.
pub async fn lapsed(permit: Option<&mut Permit>, tenure: Option<&Tenure>, late: Option<Instant>) -> Refusal {
    let revoked = async {
        match permit {
            Some(permit) => permit.revoked().await,
            None => std::future::pending().await,
        }
    };
    let overdue = async {
        match late {
            Some(late) => alarm::at(late).await,
            None => std::future::pending().await,
        }
        Refusal::new(Reason::RequestTimeout, "it took longer than a request may")
    };
    let ended = async {
        match tenure {
            Some(tenure) => tenure.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        refusal = revoked => refusal,
        refusal = ended => refusal,
        refusal = overdue => refusal,
    }
}
