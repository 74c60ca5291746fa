//! A token: who bears it, whom it is for, until when.

use aws_lc_rs::{rand::SystemRandom, signature::EcdsaKeyPair};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outrider_policy::SpiffeId;
use serde_json::json;

use super::JwtError;

/// Most names of one token.
const MAX_NAMES: usize = 16;
/// Longest name.
const MAX_NAME: usize = 256;

/// Whom a token is for: bounded, and never nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Audience(Vec<String>);

impl Audience {
    /// Reads a request's audience; `None` when it is not acceptable.
    pub(crate) fn read(names: Vec<String>) -> Option<Self> {
        let good = |name: &String| (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control);
        ((1..=MAX_NAMES).contains(&names.len()) && names.iter().all(good)).then_some(Self(names))
    }
}

/// A signed token.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    /// JWS, compact form.
    pub(crate) text: String,
    /// Unix seconds.
    pub(crate) issued: i64,
    /// Unix seconds.
    pub(crate) expires: i64,
}

impl Token {
    /// Signs one (RFC 7515, section 3.1; JWT-SVID, sections 2 and 3).
    pub(super) fn sign(
        identity: &SpiffeId,
        audience: &Audience,
        (kid, key): (&str, &EcdsaKeyPair),
        (issued, ttl): (i64, i64),
    ) -> Result<Self, JwtError> {
        let expires = issued.saturating_add(ttl);
        let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = encode(json!({ "alg": "ES256", "kid": kid, "typ": "JWT" }));
        let claims = encode(json!({ "sub": identity.as_str(), "aud": audience.0, "iat": issued, "exp": expires }));
        let signed = format!("{header}.{claims}");
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| JwtError::Sign)?;
        let text = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
        Ok(Self { text, issued, expires })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_is_never_empty_and_bounded_in_every_way() {
        let names = |count: usize, name: &str| vec![name.to_owned(); count];
        assert!(Audience::read(names(16, &"a".repeat(256))).is_some());
        for bad in [names(0, ""), names(1, ""), names(17, "a"), names(1, &"a".repeat(257)), names(1, "a\nb"), names(1, "a\0")] {
            assert!(Audience::read(bad).is_none());
        }
    }
}
