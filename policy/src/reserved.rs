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

    fn of_lower_case(name: &str) -> Option<Self> {
        match name {
            "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "upgrade"
            | "http2-settings"
            | "proxy-authenticate"
            | "proxy-authorization" => Some(Self::Connection),
            "content-length" | "transfer-encoding" | "expect" => Some(Self::Body),
            "x-forwarded-client-cert" | "l5d-client-id" => Some(Self::Identity),
            "x-original-url" | "x-original-path" | "x-rewrite-url" => Some(Self::Target),
            "x-request-id" | "traceparent" => Some(Self::Trace),
            _ if name.starts_with("x-outrider-") || name.starts_with("x-envoy-") => Some(Self::Identity),
            _ => None,
        }
    }
}

/// Longest of the names, and longer than the prefixes.
const LONGEST: usize = 23;

/// Whether a field is taken out, by its name in any case, and why.
pub fn reserved(name: &[u8]) -> Option<Reserved> {
    // Nearly every field has another first letter. The rest is compared in lower case, without an allocation.
    if !matches!(name.first().map(u8::to_ascii_lowercase), Some(b'c' | b'e' | b'h' | b'k' | b'l' | b'p' | b't' | b'u' | b'x')) {
        return None;
    }
    let mut lower = [0; LONGEST + 1];
    let start = name.get(..lower.len()).unwrap_or(name);
    let lower = lower.get_mut(..start.len())?;
    lower.copy_from_slice(start);
    lower.make_ascii_lowercase();
    Reserved::of_lower_case(std::str::from_utf8(lower).ok()?)
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
        assert_eq!(reserved(b"x-envoy-\xff-----------------------"), None, "no field name at all");
    }
}
