//! Parse once: what a codec read becomes the one canonical request, or is refused. Nothing after this looks at raw bytes.

use std::borrow::Cow;

use outrider_policy::{Reserved, is_method, path, query, reserved};

use super::{
    Fields,
    host::{self, HostRead},
    message::{RequestHead, Version},
};
use crate::{
    hex,
    refusal::{Reason, Refusal},
    scan,
    telemetry::TraceContext,
};

/// Longest request id taken over from a caller.
const REQUEST_ID: usize = 64;

/// Where a codec found the host, and what it says. What is wrong with it is said by [`RequestParts::normalize`].
#[derive(Debug)]
pub struct Host {
    /// HTTP/1 must have the field; HTTP/2 may have `:authority` instead.
    needs_field: bool,
    pseudo: Option<HostRead>,
    field: Option<HostRead>,
}

impl Host {
    /// The `Host` field of HTTP/1.
    pub fn field(field: Option<&[u8]>) -> Self {
        Self { needs_field: true, pseudo: None, field: field.map(host::read) }
    }

    /// `:authority` and `host` of HTTP/2.
    pub fn authority(pseudo: Option<&[u8]>, field: Option<&[u8]>) -> Self {
        Self { needs_field: false, pseudo: pseudo.map(host::read), field: field.map(host::read) }
    }
}

/// A request's head as a codec read it.
#[derive(Debug)]
pub struct RequestParts {
    method: http::Method,
    target: Vec<u8>,
    host: Host,
    fields: Fields,
    version: Version,
}

fn bad_host(detail: impl Into<String>) -> Refusal {
    Refusal::new(Reason::BadHost, detail)
}

fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(Reason::Malformed, detail)
}

impl RequestParts {
    /// Takes what a codec read.
    ///
    /// # Errors
    /// When the method is none that is served ([`is_method`]).
    pub fn new(method: &[u8], target: &[u8], host: Host, fields: Fields, version: Version) -> Result<Self, Refusal> {
        let plain = is_method(method);
        let method = http::Method::from_bytes(method)
            .ok()
            .filter(|_| plain)
            .ok_or_else(|| malformed("method is not an upper-case token"))?;
        Ok(Self { method, target: target.to_vec(), host, fields, version })
    }

    /// The fields so far.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Whether the caller speaks HTTP/1.0.
    pub fn is_http10(&self) -> bool {
        self.version == Version::Http10
    }

    /// The canonical form.
    ///
    /// # Errors
    /// `malformed`, `bad_host`, `ambiguous_path`.
    pub fn normalize(self) -> Result<RequestHead, Refusal> {
        let Self { method, target, host, mut fields, version } = self;
        let (target_authority, path_and_query) = split_target(&method, &target)?;
        if host.needs_field && host.field.is_none() {
            return Err(bad_host("no host field"));
        }
        let (host, host_port) = agree(host.pseudo.or_else(|| target_authority.map(host::read)), host.field)?;
        let (path, query) = match path_and_query.iter().position(|&byte| byte == b'?') {
            Some(at) => (path_and_query.get(..at).unwrap_or_default(), path_and_query.get(at + 1..)),
            None => (path_and_query, None),
        };
        let path = match path {
            b"*" => "*".into(),
            b"" if method == http::Method::CONNECT => "".into(),
            // Of a URL that goes on with its query (RFC 9112 section 3.2.1).
            b"" => "/".into(),
            path => path::canonical(path).map_err(|problem| Refusal::new(Reason::AmbiguousPath, problem.to_string()))?,
        };
        let path_len = path.len();
        let query = query.map(query::canonical).transpose().map_err(|problem| malformed(problem.to_string()))?;
        let is_canonical = matches!((&path, &query), (Cow::Borrowed(_), None | Some(Cow::Borrowed(_))));
        let is_whole = is_canonical && path_and_query.len() == target.len();
        let target = if is_whole {
            // Canonical as it came, which is nearly always so.
            String::from_utf8(target).map_err(|_| malformed("request target is not ASCII"))?
        } else {
            let mut canonical = path.into_owned();
            if let Some(query) = query {
                canonical.push('?');
                canonical.push_str(&query);
            }
            canonical
        };
        let (id, trace) = (request_id(&fields), TraceContext::take(&mut fields, "x-request-id"));
        Ok(RequestHead { method, target, path_len, host, host_port, fields, version, id, trace, upgrade: None })
    }
}

/// Two places may name the host; both must name the same one.
fn agree(first: Option<HostRead>, second: Option<HostRead>) -> HostRead {
    match (first, second) {
        (None, None) => Err(bad_host("no host")),
        (Some(one), None) | (None, Some(one)) => one,
        (Some(first), Some(second)) => {
            let (first, second) = (first?, second?);
            let same = first.0 == second.0 && first.1.unwrap_or(80) == second.1.unwrap_or(80);
            if same { Ok(first) } else { Err(bad_host("the request target names another host than the host field")) }
        }
    }
}

/// Splits a request target (RFC 9112 section 3.2) into authority and path with query.
fn split_target<'a>(method: &http::Method, target: &'a [u8]) -> Result<(Option<&'a [u8]>, &'a [u8]), Refusal> {
    if *method == http::Method::CONNECT {
        return Ok((Some(target).filter(|target| !target.is_empty()), b""));
    }
    match target {
        [b'/', ..] => Ok((None, target)),
        b"*" if *method == http::Method::OPTIONS => Ok((None, target)),
        _ => {
            let scheme = target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case(b"http://"));
            let rest = scheme
                .and_then(|_| target.get(7..))
                .ok_or_else(|| malformed("request target is neither a path nor an http URL"))?;
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            Ok((Some(authority), if path.is_empty() { b"/" } else { path }))
        }
    }
}

/// The request's id: the caller's if it is a plain word, else a new one.
fn request_id(fields: &Fields) -> String {
    let given = fields.single("x-request-id").filter(|id| {
        (8..=REQUEST_ID).contains(&id.len()) && !scan::any(id, |byte| !byte.is_ascii_alphanumeric() & (byte != b'-'))
    });
    given.and_then(|id| std::str::from_utf8(id).ok()).map_or_else(new_request_id, str::to_owned)
}

/// A fresh request id.
pub fn new_request_id() -> String {
    String::from_utf8_lossy(&hex::long(fastrand::u128(..))).into_owned()
}

/// Fields that concern one connection only, and those with which callers try to switch protocols.
pub fn hop_by_hop(name: &[u8]) -> bool {
    reserved(name) == Some(Reserved::Connection)
}

/// Fields by which meshes and proxies say who somebody is or what was asked for. A caller's own are never believed.
pub fn is_identity_claim(name: &[u8]) -> bool {
    // Nearly every field has another first letter.
    matches!(name.first(), Some(b'x' | b'X' | b'l' | b'L'))
        && matches!(reserved(name), Some(Reserved::Identity | Reserved::Target))
}

/// Fields that mean something only in a head (RFC 9110 section 6.5.1).
pub fn forbidden_in_trailers(name: &[u8]) -> bool {
    const NAMES: &[&[u8]] = &[b"host", b"authorization", b"cookie", b"set-cookie", b"content-type", b"content-encoding"];
    NAMES.iter().any(|each| name.eq_ignore_ascii_case(each)) || reserved(name).is_some_and(|why| why != Reserved::Trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, target: &str, host: &str) -> Result<RequestHead, Refusal> {
        RequestParts::new(
            method.as_bytes(),
            target.as_bytes(),
            Host::field(Some(host.as_bytes())),
            Fields::default(),
            Version::Http11,
        )?
        .normalize()
    }

    #[test]
    fn hosts_become_one_form() {
        for host in ["files.shop", "FILES.shop", "files.shop.", "files.shop:80", "files.shop:0080"] {
            assert_eq!(head("GET", "/", host).unwrap().host, "files.shop".into(), "{host}");
        }
        for host in ["files.shop:", "files.shop:99999", "a@files.shop", "", "files shop", "files.shop:1:2"] {
            assert_eq!(head("GET", "/", host).unwrap_err().reason(), Reason::BadHost, "{host}");
        }
    }

    #[test]
    fn absolute_targets_must_agree_with_the_host() {
        let request = head("GET", "http://files.shop/a?b", "files.shop:80").unwrap();
        assert_eq!((request.path(), request.query(), &*request.host), ("/a", Some("b"), "files.shop"));
        assert_eq!(head("GET", "http://files.shop", "files.shop").unwrap().path(), "/");
        let request = head("GET", "http://files.shop?b", "files.shop").unwrap();
        assert_eq!((request.path(), request.target.as_str()), ("/", "/?b"), "no path is the shortest one");
        for target in ["https://files.shop/", "ftp://files.shop/", "files.shop/", "pkg.Svc/Del", "*"] {
            assert!(head("GET", target, "files.shop").is_err(), "{target}");
        }
        assert_eq!(head("GET", "http://other.shop/", "files.shop").unwrap_err().reason(), Reason::BadHost);
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for path in [
            "/public/../private",
            "/public/%2e%2e/private",
            "/public/./private",
            "//admin",
            "/x%2f..%2fadmin",
            "/x%2F..%2Fadmin",
            "/%5cadmin",
            "/%5Cadmin",
            "/\\admin",
            "/user/profile#s",
            "/user/..;foo=bar/admin",
            "/a%00",
            "/a%zz",
            "/a%2",
            "/caf\u{e9}",
            "/a%252e",
        ] {
            let refusal = head("GET", path, "a.b").expect_err(path);
            assert!(matches!(refusal.reason(), Reason::AmbiguousPath | Reason::Malformed), "{path}");
        }
    }

    #[test]
    fn escapes_become_one_form() {
        assert_eq!(head("GET", "/%61dmin/%7Ex", "a.b").unwrap().path(), "/admin/~x");
        for (sent, canonical) in [
            ("/a?d%65bug=%31", "/a?debug=1"),
            ("/%61?d%65bug=1%2f", "/a?debug=1%2F"),
            ("/a?x=%2F+%26", "/a?x=%2F+%26"),
            ("http://a.b?%61", "/?a"),
        ] {
            assert_eq!(head("GET", sent, "a.b").unwrap().target, canonical, "{sent}");
        }
        for sent in ["/a?x=100%", "/a?%2%35", "/a?x=%zz", "/a?\u{e9}"] {
            assert_eq!(head("GET", sent, "a.b").unwrap_err().reason(), Reason::Malformed, "{sent}");
        }
    }

    #[test]
    fn methods_are_upper_case_tokens() {
        for method in ["get", "Get", "G\u{e9}T", "G T", "", "123"] {
            assert!(head(method, "/", "a.b").is_err(), "{method}");
        }
        assert!(head("PROPFIND", "/", "a.b").is_ok());
    }
}
