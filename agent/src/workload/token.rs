//! Checking a token (JWT-SVID) as strictly as the standard allows: one algorithm, known keys, known header fields, an audience, an
//! end, and a subject of our trust domain. Anything else is refused.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outrider_policy::SpiffeId;
use serde::Deserialize;

use super::jwks::Keys;

/// Longest token.
pub(super) const MAX_TOKEN: usize = 8 * 1024;
/// How far the clock of who signed may be ahead of ours, seconds. An end is taken at its word.
const SKEW: f64 = 60.0;

/// A token that is not good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a JWS in compact form, or too long.
    #[error("not a signed token in compact form of at most {MAX_TOKEN} bytes")]
    Form,
    /// A header with something else than algorithm, key and type, or not as the standard wants them.
    #[error("the token's header is not that of a JWT-SVID")]
    Header,
    /// Any algorithm but ES256.
    #[error("the token is not signed with ES256")]
    Algorithm,
    /// Nobody we know signed it.
    #[error("the token is signed with a key that is not in the bundle")]
    UnknownKey,
    /// Not signed with the key it names.
    #[error("the token's signature is wrong")]
    Signature,
    /// Claims that are missing or of the wrong kind.
    #[error("the token's claims are not those of a JWT-SVID")]
    Claims,
    /// For somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// Not a workload of our trust domain.
    #[error("the token's subject is not a workload of this trust domain")]
    Subject,
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// Who bears it.
    pub subject: SpiffeId,
    /// All claims.
    pub all: serde_json::Map<String, serde_json::Value>,
}

/// The standard's only header fields. Others must not be there: a key or a place for one in a token (`jwk`, `jku`, `x5u`) is the
/// bearer's word, and `crit` asks for what we do not do.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    typ: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn names(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

#[derive(Deserialize)]
struct Checked {
    sub: String,
    aud: Audience,
    exp: f64,
    nbf: Option<f64>,
    iat: Option<f64>,
}

impl Claims {
    /// Checks `token` for `audience` at `now`, Unix seconds.
    ///
    /// # Errors
    /// Names the first rule that it breaks.
    pub(super) fn read(token: &str, audience: &str, keys: &Keys, now: f64) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Form);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Form)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form);
        let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
        let header: Header = serde_json::from_slice(&header).map_err(|_| TokenError::Header)?;
        if header.alg != "ES256" {
            return Err(TokenError::Algorithm);
        }
        if !matches!(header.typ.as_deref(), None | Some("JWT" | "JOSE")) {
            return Err(TokenError::Header);
        }
        let point = keys.find(&header.kid).ok_or(TokenError::UnknownKey)?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        key.verify(signed.as_bytes(), &signature).map_err(|_| TokenError::Signature)?;
        let checked: Checked = serde_json::from_slice(&payload).map_err(|_| TokenError::Claims)?;
        let all = serde_json::from_slice(&payload).map_err(|_| TokenError::Claims)?;
        Ok(Self { subject: checked.check(audience, keys, now)?, all })
    }
}

impl Checked {
    fn check(self, audience: &str, keys: &Keys, now: f64) -> Result<SpiffeId, TokenError> {
        if audience.is_empty() || !self.aud.names(audience) {
            return Err(TokenError::Audience);
        }
        if self.exp <= now {
            return Err(TokenError::Expired);
        }
        if [self.nbf, self.iat].into_iter().flatten().any(|time| time > now + SKEW) {
            return Err(TokenError::NotYet);
        }
        let subject: SpiffeId = self.sub.parse().map_err(|_| TokenError::Subject)?;
        if !subject.belongs_to(&keys.trust_domain) || subject.account().is_none() {
            return Err(TokenError::Subject);
        }
        Ok(subject)
    }
}
