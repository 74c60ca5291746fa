//! Who a workload is: SPIFFE IDs, parsed once and strictly.
//!
//! The grammar is that of the SPIFFE-ID standard, section 2, byte by byte: a trust domain of `a-z 0-9 . - _`, a path of
//! non-empty segments of `A-Z a-z 0-9 . - _`, no percent escapes, no `.` or `..`, no trailing slash, at most 2048 bytes.
//! An ID without a path names a whole trust domain, never a workload, so it is not a [`SpiffeId`] here.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::names::{NameProblem, ServiceAccount};

const SCHEME: &str = "spiffe://";
/// Longest SPIFFE ID in bytes.
pub const MAX_ID_BYTES: usize = 2048;
/// Longest trust domain in bytes.
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// Why a text is not a SPIFFE ID or not a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityProblem {
    /// The scheme is missing or not lower case.
    #[error("`{0}` does not begin with `spiffe://`")]
    Scheme(String),
    /// Too many bytes.
    #[error("a SPIFFE ID has at most {MAX_ID_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// The trust domain is empty, too long or holds a byte that it may not.
    #[error("`{0}` is not a trust domain: 1 to {MAX_TRUST_DOMAIN_BYTES} bytes of `a-z`, `0-9`, `.`, `-` and `_`")]
    TrustDomain(String),
    /// There is no path, so no workload is named.
    #[error("`{0}` has no path: a workload is `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`")]
    NoPath(String),
    /// A path segment is empty, `.`, `..`, or holds a byte that it may not.
    #[error("path segment `{0}` is not made of `A-Z`, `a-z`, `0-9`, `.`, `-` and `_`, or is empty, `.` or `..`")]
    Segment(String),
}

/// The name of a trust domain, such as `mesh.example`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Reads a trust domain; refuses upper case rather than folding it.
    pub fn new(text: &str) -> Result<Self, IdentityProblem> {
        let byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN_BYTES || !text.bytes().all(byte) {
            return Err(IdentityProblem::TrustDomain(shown(text)));
        }
        Ok(Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The identity of a workload, such as `spiffe://mesh.example/ns/shop/sa/orders`. Cheap to clone.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    /// The ID, and behind it `NAMESPACE/SERVICE-ACCOUNT` if it has them: decisions look for these with every request.
    text: Arc<str>,
    /// Where the trust domain ends and the path begins.
    path_at: usize,
    /// Where the ID ends.
    end: usize,
}

impl SpiffeId {
    /// Reads an ID by the rules of the standard.
    pub fn new(text: &str) -> Result<Self, IdentityProblem> {
        if text.len() > MAX_ID_BYTES {
            return Err(IdentityProblem::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| IdentityProblem::Scheme(shown(text)))?;
        let (trust_domain, path) = rest.split_once('/').ok_or_else(|| IdentityProblem::NoPath(shown(text)))?;
        TrustDomain::new(trust_domain)?;
        if path.is_empty() {
            return Err(IdentityProblem::NoPath(shown(text)));
        }
        if let Some(bad) = path.split('/').find(|segment| !is_segment(segment)) {
            return Err(IdentityProblem::Segment(shown(bad)));
        }
        Ok(Self::of(text, SCHEME.len() + trust_domain.len()))
    }

    fn of(id: &str, path_at: usize) -> Self {
        let text = match id.get(path_at..).and_then(account_parts) {
            Some((namespace, account)) => format!("{id}{namespace}/{account}").into(),
            None => id.into(),
        };
        Self { text, path_at, end: id.len() }
    }

    /// The ID of the workloads that run as `service_account` in `namespace`.
    pub fn workload(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, NameProblem> {
        let account = ServiceAccount::new(namespace, service_account)?;
        Ok(Self::of_account(trust_domain, &account))
    }

    /// The ID of the workloads that run as `account`.
    pub fn of_account(trust_domain: &TrustDomain, account: &ServiceAccount) -> Self {
        let (namespace, name) = (account.namespace(), account.name());
        let text = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{name}");
        Self::of(&text, SCHEME.len() + trust_domain.as_str().len())
    }

    /// The whole ID, as it stands in a certificate.
    pub fn as_str(&self) -> &str {
        self.text.get(..self.end).unwrap_or_default()
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.path_at).unwrap_or_default()
    }

    /// The path, beginning with `/`.
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..self.end).unwrap_or_default()
    }

    /// The namespace, if the path is exactly `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub fn namespace(&self) -> Option<&str> {
        self.account_parts().map(|(namespace, _)| namespace)
    }

    /// The service account's name, if the path is exactly `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub fn service_account(&self) -> Option<&str> {
        self.account_parts().map(|(_, account)| account)
    }

    /// Namespace and service account, if the path is exactly `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub fn account_parts(&self) -> Option<(&str, &str)> {
        self.account_name()?.split_once('/')
    }

    /// `NAMESPACE/SERVICE-ACCOUNT`, if the path is exactly `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub fn account_name(&self) -> Option<&str> {
        self.text.get(self.end..).filter(|name| !name.is_empty())
    }

    /// Whether this is a workload of `trust_domain`.
    pub fn belongs_to(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain() == trust_domain.as_str()
    }

    /// The namespace and service account as names, if the path spells them and both are RFC 1123 names.
    pub fn account(&self) -> Option<ServiceAccount> {
        let (namespace, account) = self.account_parts()?;
        ServiceAccount::new(namespace, account).ok()
    }
}

fn account_parts(path: &str) -> Option<(&str, &str)> {
    let (namespace, rest) = path.strip_prefix("/ns/")?.split_once('/')?;
    let account = rest.strip_prefix("sa/")?;
    (!account.contains('/')).then_some((namespace, account))
}

fn is_segment(segment: &str) -> bool {
    let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !matches!(segment, "" | "." | "..") && segment.bytes().all(byte)
}

/// Outsiders choose these texts: an error repeats a bounded, escaped piece of them.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}
impl Eq for SpiffeId {}
impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}
impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}
impl Borrow<str> for SpiffeId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}
impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.as_str())
    }
}

crate::names::text_traits!(SpiffeId, IdentityProblem);
crate::names::text_traits!(TrustDomain, IdentityProblem);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_behind_an_id_is_no_part_of_it() {
        let id: SpiffeId = "spiffe://a.b/ns/shop/sa/web".parse().unwrap();
        let longer: SpiffeId = "spiffe://a.b/ns/shop/sa/webshop/web".parse().unwrap();
        assert_eq!((id.account_name(), id.account_parts()), (Some("shop/web"), Some(("shop", "web"))));
        assert_eq!((longer.account_name(), longer.path()), (None, "/ns/shop/sa/webshop/web"));
        assert!(id != longer && id < longer && id.as_str() == "spiffe://a.b/ns/shop/sa/web");
        assert_eq!(std::collections::HashSet::from([id.clone(), longer.clone()]).len(), 2);
        assert_eq!((id.to_string(), id.path()), ("spiffe://a.b/ns/shop/sa/web".to_owned(), "/ns/shop/sa/web"));
    }

    #[test]
    fn every_byte_outside_the_standards_sets_is_refused_in_the_trust_domain_and_in_the_path() {
        for byte in 0u8..=127 {
            let c = char::from(byte);
            let in_domain = SpiffeId::new(&format!("spiffe://a{c}b/ns/x/sa/y"));
            let may = c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c) || c == '/';
            assert_eq!(in_domain.is_ok(), may, "trust domain with {byte:#x}");
            let in_path = SpiffeId::new(&format!("spiffe://td/a{c}b"));
            let may = c.is_ascii_alphanumeric() || "._-/".contains(c);
            assert_eq!(in_path.is_ok(), may, "path with {byte:#x}");
        }
    }

    #[test]
    fn an_id_that_is_not_exactly_a_workloads_is_refused() {
        for text in [
            "",
            "spiffe://",
            "spiffe:///ns/a/sa/b",
            "spiffe://td",
            "spiffe://td/",
            "SPIFFE://td/a",
            "spiffe://TD/a",
            "http://td/a",
            "spiffe://td/a/",
            "spiffe://td//a",
            "spiffe://td/a//b",
            "spiffe://td/./a",
            "spiffe://td/a/../b",
            "spiffe://td/a%2fb",
            "spiffe://td/a?b",
            "spiffe://td/a#b",
            "spiffe://td:80/a",
            "spiffe://u@td/a",
            "spiffe://td/é",
            " spiffe://td/a",
            "spiffe://td/ns/a\0.evil",
        ] {
            assert!(SpiffeId::new(text).is_err(), "{text} was accepted");
        }
        assert!(SpiffeId::new(&format!("spiffe://td/{}", "a".repeat(2048 - 12))).is_ok());
        assert!(SpiffeId::new(&format!("spiffe://td/{}", "a".repeat(2048 - 11))).is_err());
    }

    #[test]
    fn namespace_and_service_account_are_read_only_from_the_exact_shape() {
        let id: SpiffeId = "spiffe://mesh.example/ns/shop/sa/web".parse().unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("mesh.example", Some("shop"), Some("web")));
        for other in [
            "spiffe://td/ns/shop/sa/web/x",
            "spiffe://td/ns/shop/sa",
            "spiffe://td/x/ns/shop/sa/web",
            "spiffe://td/NS/shop/sa/web",
        ] {
            assert_eq!(SpiffeId::new(other).unwrap().namespace(), None, "{other}");
        }
        let made = SpiffeId::workload(&TrustDomain::new("mesh.example").unwrap(), "shop", "web").unwrap();
        assert_eq!(made, id);
        assert_eq!(made.path(), "/ns/shop/sa/web");
    }

    #[test]
    fn an_id_survives_json() {
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<SpiffeId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<SpiffeId>("\"spiffe://TD/a\"").is_err());
    }
}
