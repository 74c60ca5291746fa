//! Why a request or connection was not served: one closed set of reasons, the same word in log, metric and docs.

/// Who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The caller sent something that cannot be served.
    Caller,
    /// A policy, or the lack of one, says no.
    Policy,
    /// What the request was for does not answer properly.
    Upstream,
    /// The mesh itself cannot serve: identity, configuration, overload.
    Mesh,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $reason:literal, $blame:ident, $status:literal;)*) => {
        /// A refusal without its details.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word used in access log, metrics and docs.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $reason,)* }
            }

            /// Who has to act.
            pub fn blame(self) -> Blame {
                match self { $(Self::$name => Blame::$blame,)* }
            }

            /// HTTP status the caller sees.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

reasons! {
    /// Not HTTP, or HTTP that could be read in two ways.
    Malformed = "malformed", Caller, 400;
    /// The path has an ambiguous or forbidden form.
    AmbiguousPath = "ambiguous_path", Caller, 400;
    /// Missing, repeated or malformed host.
    BadHost = "bad_host", Caller, 400;
    /// The request's head did not arrive in time.
    HeadTimeout = "head_timeout", Caller, 408;
    /// Head too large or too many header fields.
    HeadTooLarge = "head_too_large", Caller, 431;
    /// An expectation other than `100-continue`.
    UnknownExpectation = "unknown_expectation", Caller, 417;
    /// A method that this listener does not serve.
    MethodNotServed = "method_not_served", Caller, 405;
    /// The request names another service than its connection.
    Misdirected = "misdirected", Caller, 421;
    /// No rule allows it, or a rule denies it.
    PolicyDenied = "policy_denied", Policy, 403;
    /// No usable policy is in force for the destination.
    NoPolicy = "no_policy", Policy, 403;
    /// A caller in plaintext, where the policy wants mutual TLS.
    PlaintextRefused = "plaintext_refused", Policy, 403;
    /// The destination is not in the mesh and no egress rule allows it.
    EgressDenied = "egress_denied", Policy, 403;
    /// A policy change ended a stream under way.
    PolicyRevoked = "policy_revoked", Policy, 403;
    /// No such service, or no such port of it.
    UnknownService = "unknown_service", Caller, 404;
    /// Routes are attached to the service, and none of them is for this request.
    NoRoute = "no_route", Caller, 404;
    /// The service's port does not speak what the caller wants to speak.
    ProtocolMismatch = "protocol_mismatch", Caller, 400;
    /// The service has no endpoint.
    NoEndpoint = "no_endpoint", Upstream, 503;
    /// No connection to the upstream could be made.
    ConnectFailed = "connect_failed", Upstream, 503;
    /// The peer at the other end did not prove the identity expected of it.
    PeerIdentity = "peer_identity", Upstream, 502;
    /// The upstream broke the connection or its protocol.
    UpstreamFailed = "upstream_failed", Upstream, 502;
    /// The upstream did not answer in time.
    UpstreamTimeout = "upstream_timeout", Upstream, 504;
    /// This agent holds no valid certificate.
    NoIdentity = "no_identity", Mesh, 503;
    /// A limit of this agent is reached.
    Overloaded = "overloaded", Mesh, 503;
    /// The agent is leaving.
    Draining = "draining", Mesh, 503;
}

/// A refusal with what operators need to know. Callers see the status and the request id only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", reason.as_str())]
pub struct Refusal {
    reason: Reason,
    detail: String,
}

impl Refusal {
    /// A refusal for `reason`; `detail` goes to the record, never to the caller.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// A refusal for `reason`, caused by `error`.
    pub fn caused(reason: Reason, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(reason, outrider_runtime::tasks::chain(error))
    }

    /// The reason.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Who has to act.
    pub fn blame(&self) -> Blame {
        self.reason.blame()
    }

    /// HTTP status the caller sees.
    pub fn status(&self) -> u16 {
        self.reason.status()
    }

    /// What operators need to know.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_distinct_words_with_error_statuses() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
        assert!(Reason::ALL.iter().all(|reason| (400..600).contains(&reason.status())));
    }
}
