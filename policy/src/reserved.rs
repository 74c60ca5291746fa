//! The header fields that an agent takes out of a request before anything is decided.
//!
//! They belong to one connection, or anybody can claim something by them, or the agents write them themselves. A condition on
//! one of them could never hold, so policies that name one are refused; and agents drop by this list, so that the two agree.

/// Why a field is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// It is about one connection only (RFC 9110 section 7.6.1), or an attempt to switch its protocol.
    Connection,
    /// It says how a body is delimited, or wants to be asked for it.
    Body,
    /// Who somebody is, as meshes and proxies say it.
    Identity,
    /// What was asked for, as proxies say it that rewrote a request.
    Target,
    /// The request's id and its trace.
    Trace,
}

impl Reserved {
    /// What to write instead of a condition on such a field.
    pub fn way_out(self) -> &'static str {
        match self {
            Self::Connection => "it ends at each agent and reaches no program; use `methods` and `paths`",
            Self::Body => "the agent reads it and writes its own; bounds for bodies are settings of the agent (`--limit`)",
            Self::Identity => "a caller's own is dropped; use `from`, which compares what the certificate proved",
            Self::Target => "a caller's own is dropped; use `paths` and `hosts`, which compare what the program will see",
            Self::Trace => "agents write it themselves, and it proves nothing; use a header of your own",
        }
    }
}

const NAMES: &[(&[u8], Reserved)] = &[
    (b"connection", Reserved::Connection),
    (b"keep-alive", Reserved::Connection),
    (b"proxy-connection", Reserved::Connection),
    (b"te", Reserved::Connection),
    (b"trailer", Reserved::Connection),
    (b"upgrade", Reserved::Connection),
    (b"http2-settings", Reserved::Connection),
    (b"proxy-authenticate", Reserved::Connection),
    (b"proxy-authorization", Reserved::Connection),
    (b"content-length", Reserved::Body),
    (b"transfer-encoding", Reserved::Body),
    (b"expect", Reserved::Body),
    (b"x-forwarded-client-cert", Reserved::Identity),
    (b"l5d-client-id", Reserved::Identity),
    (b"x-original-url", Reserved::Target),
    (b"x-original-path", Reserved::Target),
    (b"x-rewrite-url", Reserved::Target),
    (b"x-request-id", Reserved::Trace),
    (b"traceparent", Reserved::Trace),
];
/// Names that begin so are [`Reserved::Identity`].
const PREFIXES: &[&[u8]] = &[b"x-outrider-", b"x-envoy-"];

/// Whether a field is taken out, by its name in any case, and why.
pub fn reserved(name: &[u8]) -> Option<Reserved> {
    // Nearly every field has another first letter, and of the rest nearly every one another length.
    let first = name.first().map(u8::to_ascii_lowercase);
    if !matches!(first, Some(b'c' | b'e' | b'h' | b'k' | b'l' | b'p' | b't' | b'u' | b'x')) {
        return None;
    }
    let mut alike = NAMES.iter().filter(|(known, _)| known.len() == name.len());
    let known = alike.find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, why)| *why);
    let begins = |prefix: &&[u8]| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    known.or_else(|| PREFIXES.iter().any(begins).then_some(Reserved::Identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case_and_by_the_whole_name() {
        for (name, expected) in [
            ("Upgrade", Some(Reserved::Connection)),
            ("HTTP2-Settings", Some(Reserved::Connection)),
            ("Content-Length", Some(Reserved::Body)),
            ("EXPECT", Some(Reserved::Body)),
            ("X-Forwarded-Client-Cert", Some(Reserved::Identity)),
            ("X-Envoy-External-Address-And-More-Of-It", Some(Reserved::Identity)),
            ("x-outrider-", Some(Reserved::Identity)),
            ("X-Original-URL", Some(Reserved::Target)),
            ("TraceParent", Some(Reserved::Trace)),
            ("x-forwarded-client-cert-", None),
            ("x-forwarded-client-certs", None),
            ("x-forwarded-for", None),
            ("x-outrider", None),
            ("upgrade-insecure-requests", None),
            ("content-type", None),
            ("tracestate", None),
            ("host", None),
            ("", None),
        ] {
            assert_eq!(reserved(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn no_name_has_a_first_letter_that_is_not_looked_at() {
        let prefixes = PREFIXES.iter().map(|prefix| (*prefix, Reserved::Identity));
        for (name, why) in NAMES.iter().copied().chain(prefixes) {
            assert_eq!(reserved(name), Some(why), "{}", name.escape_ascii());
            assert_eq!(reserved(&name.to_ascii_uppercase()), Some(why), "{}", name.escape_ascii());
        }
    }
}
