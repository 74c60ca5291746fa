//! The one spelling of a host that policy, router, log and upstream all read.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// Longest host name in bytes.
const MAX_NAME_BYTES: usize = 253;

/// A canonical host: lower case, without trailing dot and userinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host<'a> {
    /// The name, or an IPv4 address, or an IPv6 address in brackets.
    pub name: Cow<'a, str>,
    /// The port, if one was given: 1 to 65535.
    pub port: Option<u16>,
}

/// Why a `Host` or `:authority` is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostProblem {
    /// Nothing before the port.
    #[error("the host is empty")]
    Empty,
    /// Longer than a domain name can be.
    #[error("the host is longer than 253 bytes")]
    TooLong,
    /// `user@host`.
    #[error("the host holds user information")]
    UserInfo,
    /// Not digits, or not within 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// Not an IPv6 address in the brackets, or no closing bracket.
    #[error("the brackets hold no IPv6 address")]
    Ipv6,
    /// A byte that is not a letter, a digit, `-`, `.` or `_`.
    #[error("a byte that is not allowed at byte {0} of the host")]
    Byte(usize),
    /// `a..b` or a leading dot.
    #[error("the host has an empty label")]
    EmptyLabel,
}

/// The canonical form of a `Host` header or an `:authority`. Borrows when there is nothing to change.
pub fn canonical(raw: &[u8]) -> Result<Host<'_>, HostProblem> {
    if raw.contains(&b'@') {
        return Err(HostProblem::UserInfo);
    }
    let text = std::str::from_utf8(raw).map_err(|e| HostProblem::Byte(e.valid_up_to()))?;
    if text.starts_with('[') {
        return ipv6(text);
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(number(port)?)),
        None => (text, None),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    check_name(name)?;
    let name =
        if name.bytes().any(|b| b.is_ascii_uppercase()) { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) };
    Ok(Host { name, port })
}

fn check_name(name: &str) -> Result<(), HostProblem> {
    if name.is_empty() {
        return Err(HostProblem::Empty);
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(HostProblem::TooLong);
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if let Some(at) = name.bytes().position(|b| !allowed(b)) {
        return Err(HostProblem::Byte(at));
    }
    if name.split('.').any(str::is_empty) {
        return Err(HostProblem::EmptyLabel);
    }
    Ok(())
}

fn ipv6(text: &str) -> Result<Host<'_>, HostProblem> {
    let end = text.find(']').ok_or(HostProblem::Ipv6)?;
    let inside = text.get(1..end).unwrap_or_default();
    let address: Ipv6Addr = inside.parse().map_err(|_| HostProblem::Ipv6)?;
    let port = match text.get(end + 1..).unwrap_or_default() {
        "" => None,
        rest => Some(number(rest.strip_prefix(':').ok_or(HostProblem::Ipv6)?)?),
    };
    Ok(Host { name: Cow::Owned(format!("[{address}]")), port })
}

/// A port of digits only: `str::parse` would also take `+80`.
fn number(text: &str) -> Result<u16, HostProblem> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = digits.then(|| text.trim_start_matches('0').parse::<u16>().ok()).flatten();
    port.filter(|port| *port != 0).ok_or(HostProblem::Port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_have_one_spelling() {
        for (raw, name, port) in [
            ("secret.com", "secret.com", None),
            ("Secret.COM", "secret.com", None),
            ("secret.com.", "secret.com", None),
            ("secret.com:80", "secret.com", Some(80)),
            ("secret.com:0080", "secret.com", Some(80)),
            ("secret.com.:65535", "secret.com", Some(65535)),
            ("10.0.0.1:8080", "10.0.0.1", Some(8080)),
            ("[::1]", "[::1]", None),
            ("[0:0:0:0:0:0:0:1]:443", "[::1]", Some(443)),
            ("[FE80::A]", "[fe80::a]", None),
            ("a_b.c", "a_b.c", None),
        ] {
            assert_eq!(canonical(raw.as_bytes()), Ok(Host { name: name.into(), port }), "{raw}");
        }
    }

    #[test]
    fn hosts_that_two_readers_could_split_differently_are_refused() {
        use HostProblem::*;
        for (raw, problem) in [
            ("", Empty),
            (":80", Empty),
            (".", Empty),
            ("a:", Port),
            ("a:0", Port),
            ("a:99999", Port),
            ("a:+80", Port),
            ("a:8a", Port),
            ("a:80:80", Port),
            ("u@a", UserInfo),
            ("u:p@a", UserInfo),
            ("a b", Byte(1)),
            ("a/b", Byte(1)),
            ("a%2eb", Byte(1)),
            ("a\\b", Byte(1)),
            ("é", Byte(0)),
            ("a,b", Byte(1)),
            ("a..b", EmptyLabel),
            (".a", EmptyLabel),
            ("a..", EmptyLabel),
            ("[::1", Ipv6),
            ("[]", Ipv6),
            ("[::1]x", Ipv6),
            ("[fe80::1%25eth0]", Ipv6),
            ("[1.2.3.4]", Ipv6),
            ("::1", Port),
        ] {
            assert_eq!(canonical(raw.as_bytes()), Err(problem), "{raw}");
        }
        assert_eq!(canonical(&[b'a'; 254]), Err(TooLong));
        assert_eq!(canonical(b"a\xff"), Err(Byte(1)));
    }

    proptest! {
        #[test]
        fn canonical_hosts_stay_as_they_are(raw in "[\\[\\]a-zA-Z0-9.:@_-]{0,20}") {
            if let Ok(host) = canonical(raw.as_bytes()) {
                let again = canonical(host.name.as_bytes()).expect("a canonical host is accepted");
                prop_assert_eq!((again.name, again.port), (host.name.clone(), None));
            }
        }
    }
}
