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

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        hmac,
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    use outrider_proto::v1::{JwtBundle, JwtKey};
    use serde_json::{Value, json};

    use super::*;

    const NOW: f64 = 1_800_000_000.0;
    const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";

    struct Signer {
        pkcs8: Vec<u8>,
        pair: EcdsaKeyPair,
    }

    impl Signer {
        fn new() -> Self {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
            Self { pkcs8: pkcs8.as_ref().to_vec(), pair }
        }

        fn keys(&self) -> std::sync::Arc<Option<Keys>> {
            let key = JwtKey { id: "k1".to_owned(), point: self.pair.public_key().as_ref().to_vec() };
            let keys = super::super::JwtKeys::default();
            keys.replace(Some(&JwtBundle { trust_domain: "mesh.internal".to_owned(), keys: vec![key] })).unwrap();
            keys.current()
        }

        fn sign(&self, header: &str, claims: &str) -> String {
            let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
            let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
        }
    }

    fn header() -> String {
        json!({ "alg": "ES256", "kid": "k1", "typ": "JWT" }).to_string()
    }

    fn claims() -> Value {
        json!({ "sub": WEB, "aud": ["orders", "files"], "iat": NOW - 1.0, "exp": NOW + 60.0, "own": { "deep": [1, null] } })
    }

    fn with(name: &str, value: Value) -> String {
        let mut claims = claims();
        claims[name] = value;
        claims.to_string()
    }

    fn without(name: &str) -> String {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        claims.to_string()
    }

    #[test]
    fn a_good_token_is_read_whole() {
        let signer = Signer::new();
        let keys = signer.keys();
        let keys = keys.as_ref().as_ref().unwrap();
        let read = Claims::read(&signer.sign(&header(), &claims().to_string()), "files", keys, NOW).unwrap();
        assert_eq!((read.subject.as_str(), &read.all["own"]["deep"]), (WEB, &json!([1, null])));
        for header in [r#"{"alg":"ES256","kid":"k1"}"#, r#"{"typ":"JOSE","kid":"k1","alg":"ES256"}"#] {
            assert!(Claims::read(&signer.sign(header, &claims().to_string()), "orders", keys, NOW).is_ok(), "{header}");
        }
        for one in [with("aud", json!("orders")), with("exp", json!(NOW + 0.5)), with("nbf", json!(NOW + 59.0)), without("iat")] {
            assert!(Claims::read(&signer.sign(&header(), &one), "orders", keys, NOW).is_ok(), "{one}");
        }
    }

    #[test]
    fn every_claim_that_is_missing_wrong_or_over_is_refused() {
        use TokenError::{Audience, Claims as Wrong, Expired, NotYet, Subject};
        let signer = Signer::new();
        let keys = signer.keys();
        for (claims, expected) in [
            (without("exp"), Wrong),
            (without("aud"), Wrong),
            (without("sub"), Wrong),
            (with("exp", json!(NOW)), Expired),
            (with("exp", json!(0)), Expired),
            (with("exp", json!(-1)), Expired),
            (with("exp", json!("1900000000")), Wrong),
            (with("exp", Value::Null), Wrong),
            (with("exp", json!([NOW + 60.0])), Wrong),
            (claims().to_string().replace("1800000060.0", "1e400"), Wrong),
            (claims().to_string().replacen('{', "{\"exp\":1,", 1), Wrong),
            (claims().to_string().replacen('{', "{\"sub\":\"spiffe://mesh.internal/ns/a/sa/b\",", 1), Wrong),
            (with("nbf", json!(NOW + 61.0)), NotYet),
            (with("nbf", json!("soon")), Wrong),
            (with("iat", json!(NOW + 61.0)), NotYet),
            (with("aud", json!([])), Audience),
            (with("aud", json!("order")), Audience),
            (with("aud", json!(["Orders"])), Audience),
            (with("aud", json!(["orders", 7])), Wrong),
            (with("aud", json!({ "orders": true })), Wrong),
            (with("sub", json!("")), Subject),
            (with("sub", json!("web")), Subject),
            (with("sub", json!("spiffe://other.example/ns/shop/sa/web")), Subject),
            (with("sub", json!("spiffe://mesh.internal")), Subject),
            (with("sub", json!("spiffe://mesh.internal/operator/ann")), Subject),
            (with("sub", json!("spiffe://mesh.internal/ns/shop/sa/../sa/web")), Subject),
            (with("sub", json!([WEB])), Wrong),
            ("{}".to_owned(), Wrong),
            ("[]".to_owned(), Wrong),
            (String::new(), Wrong),
            (format!("{} ", claims().to_string().replace('}', "")), Wrong),
            (
                with("own", serde_json::from_str(&("[".repeat(100) + &"]".repeat(100))).unwrap())
                    .replace("[[[[", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[["),
                Wrong,
            ),
        ] {
            let keys = keys.as_ref().as_ref().unwrap();
            let read = Claims::read(&signer.sign(&header(), &claims), "orders", keys, NOW);
            assert_eq!(read.as_ref().err(), Some(&expected), "{claims}");
        }
        let keys = keys.as_ref().as_ref().unwrap();
        let nobody = with("aud", json!(["", "orders"]));
        assert_eq!(Claims::read(&signer.sign(&header(), &nobody), "", keys, NOW), Err(Audience), "no audience matches nothing");
    }

    #[test]
    fn headers_that_choose_the_algorithm_the_key_or_where_to_get_it_are_refused() {
        use TokenError::{Algorithm, Header as Wrong, UnknownKey};
        let signer = Signer::new();
        let keys = signer.keys();
        let point = URL_SAFE_NO_PAD.encode(signer.pair.public_key().as_ref());
        for (header, expected) in [
            (json!({ "alg": "none", "kid": "k1" }), Algorithm),
            (json!({ "alg": "None", "kid": "k1" }), Algorithm),
            (json!({ "alg": "NONE", "kid": "k1" }), Algorithm),
            (json!({ "alg": "", "kid": "k1" }), Algorithm),
            (json!({ "alg": "es256", "kid": "k1" }), Algorithm),
            (json!({ "alg": "ES256 ", "kid": "k1" }), Algorithm),
            (json!({ "alg": "ES384", "kid": "k1" }), Algorithm),
            (json!({ "alg": "RS256", "kid": "k1" }), Algorithm),
            (json!({ "alg": "PS256", "kid": "k1" }), Algorithm),
            (json!({ "alg": "HS256", "kid": "k1" }), Algorithm),
            (json!({ "alg": ["ES256"], "kid": "k1" }), Wrong),
            (json!({ "kid": "k1" }), Wrong),
            (json!({ "alg": "ES256" }), Wrong),
            (json!({ "alg": "ES256", "kid": null }), Wrong),
            (json!({ "alg": "ES256", "kid": 1 }), Wrong),
            (json!({ "alg": "ES256", "kid": "" }), UnknownKey),
            (json!({ "alg": "ES256", "kid": "k2" }), UnknownKey),
            (json!({ "alg": "ES256", "kid": "K1" }), UnknownKey),
            (json!({ "alg": "ES256", "kid": "../../k1" }), UnknownKey),
            (json!({ "alg": "ES256", "kid": "k1' OR '1'='1" }), UnknownKey),
            (json!({ "alg": "ES256", "kid": "k1\0" }), UnknownKey),
            (json!({ "alg": "ES256", "kid": "k1", "typ": "at+jwt" }), Wrong),
            (json!({ "alg": "ES256", "kid": "k1", "jwk": { "kty": "EC", "crv": "P-256", "x": point } }), Wrong),
            (json!({ "alg": "ES256", "kid": "k1", "jku": "https://mesh.internal/jwks" }), Wrong),
            (json!({ "alg": "ES256", "kid": "k1", "x5u": "https://mesh.internal/x5u" }), Wrong),
            (json!({ "alg": "ES256", "kid": "k1", "x5c": [] }), Wrong),
            (json!({ "alg": "ES256", "kid": "k1", "crit": ["exp"] }), Wrong),
            (json!({ "alg": "ES256", "kid": "k1", "b64": false }), Wrong),
            (json!({ "alg": "ES256", "kid": "k1", "cty": "JWT" }), Wrong),
        ] {
            let token = signer.sign(&header.to_string(), &claims().to_string());
            let read = Claims::read(&token, "orders", keys.as_ref().as_ref().unwrap(), NOW);
            assert_eq!(read.as_ref().err(), Some(&expected), "{header}");
        }
        let twice = signer.sign(r#"{"alg":"ES256","alg":"none","kid":"k1"}"#, &claims().to_string());
        assert_eq!(Claims::read(&twice, "orders", keys.as_ref().as_ref().unwrap(), NOW), Err(Wrong));
    }

    #[test]
    fn every_other_signature_and_every_changed_character_is_refused() {
        let signer = Signer::new();
        let keys = signer.keys();
        let keys = keys.as_ref().as_ref().unwrap();
        let read = |token: &str| Claims::read(token, "orders", keys, NOW);
        let good = signer.sign(&header(), &claims().to_string());
        let (signed, signature) = good.rsplit_once('.').unwrap();
        assert!(read(&good).is_ok());
        assert!(read(&Signer::new().sign(&header(), &claims().to_string())).is_err(), "another key of the same name");
        for bad in
            ["", "AA", &URL_SAFE_NO_PAD.encode([0; 64]), &format!("{signature}AAAA"), &signature[..84], &format!("{signature}=")]
        {
            assert!(read(&format!("{signed}.{bad}")).is_err(), "{bad}");
        }
        // The right key's signature in the other encoding, and a MAC with the public key as its secret.
        let asn1 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &signer.pkcs8).unwrap();
        let asn1 = asn1.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        assert!(read(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(asn1.as_ref()))).is_err());
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, signer.pair.public_key().as_ref()), signed.as_bytes());
        assert!(read(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.as_ref()))).is_err());
        for at in 0..good.len() {
            let mut changed = good.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(read(std::str::from_utf8(&changed).unwrap()).is_err(), "character {at}");
        }
        for form in
            ["", ".", "..", "a.b", &format!("{good}.x"), &format!(" {good}"), &format!("{good}\n"), &good.replace('.', "..")]
        {
            assert!(read(form).is_err(), "{form}");
        }
        let long = signer.sign(&header(), &with("own", json!("x".repeat(MAX_TOKEN))));
        assert_eq!(read(&long), Err(TokenError::Form));
    }
}
