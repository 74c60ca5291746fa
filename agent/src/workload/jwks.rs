//! The keys by which tokens of our trust domain are checked, as the control plane pushed them.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outrider_policy::TrustDomain;
use outrider_proto::v1::JwtBundle;
use tokio::sync::watch;

use super::token::{Claims, TokenError};

/// Longest name of a key.
const MAX_ID: usize = 128;
/// Most keys at a time: rotation needs three.
const MAX_KEYS: usize = 64;

/// Keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JwtKeysError {
    /// Not a trust domain.
    #[error("trust domain: {0}")]
    Domain(String),
    /// Too many.
    #[error("{0} keys for tokens, at most {MAX_KEYS} are taken")]
    TooMany(usize),
    /// Not a name, or one that is there twice.
    #[error("a key for tokens has no name of its own")]
    Name,
    /// Not a P-256 point.
    #[error("key `{0}` for tokens is not an uncompressed P-256 point")]
    Point(String),
}

/// Keys of one trust domain, checked.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) trust_domain: TrustDomain,
    points: BTreeMap<String, [u8; 65]>,
}

impl Keys {
    fn read(bundle: &JwtBundle) -> Result<Self, JwtKeysError> {
        let trust_domain = bundle.trust_domain.parse().map_err(|error| JwtKeysError::Domain(format!("{error}")))?;
        if bundle.keys.len() > MAX_KEYS {
            return Err(JwtKeysError::TooMany(bundle.keys.len()));
        }
        let mut points = BTreeMap::new();
        for key in &bundle.keys {
            if key.id.is_empty() || key.id.len() > MAX_ID || !key.id.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(JwtKeysError::Name);
            }
            let point: [u8; 65] = key.point.as_slice().try_into().map_err(|_| JwtKeysError::Point(key.id.clone()))?;
            let usable = aws_lc_rs::signature::ParsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED, point);
            if point.first() != Some(&4) || usable.is_err() {
                return Err(JwtKeysError::Point(key.id.clone()));
            }
            if points.insert(key.id.clone(), point).is_some() {
                return Err(JwtKeysError::Name);
            }
        }
        Ok(Self { trust_domain, points })
    }

    /// The key of this name.
    pub(super) fn find(&self, id: &str) -> Option<&[u8; 65]> {
        self.points.get(id)
    }

    /// As a JWK Set (RFC 7517).
    pub(super) fn to_json(&self) -> Vec<u8> {
        let key = |(id, point): (&String, &[u8; 65])| {
            let (x, y) = point.split_at(33);
            let (x, y) = (URL_SAFE_NO_PAD.encode(x.get(1..).unwrap_or_default()), URL_SAFE_NO_PAD.encode(y));
            serde_json::json!({ "kty": "EC", "crv": "P-256", "kid": id, "x": x, "y": y })
        };
        let keys: Vec<serde_json::Value> = self.points.iter().map(key).collect();
        serde_json::json!({ "keys": keys }).to_string().into_bytes()
    }
}

/// The keys in force. None at first: then no token is good.
#[derive(Debug)]
pub struct JwtKeys {
    current: ArcSwap<Option<Keys>>,
    changed: watch::Sender<u64>,
}

impl Default for JwtKeys {
    fn default() -> Self {
        Self { current: ArcSwap::from_pointee(None), changed: watch::Sender::new(0) }
    }
}

impl JwtKeys {
    /// Checks a token for `audience` at `now`, Unix seconds.
    ///
    /// # Errors
    /// Names the first rule that it breaks; without keys that none is known.
    pub fn read(&self, token: &str, audience: &str, now: f64) -> Result<Claims, TokenError> {
        let keys = self.current();
        let keys = keys.as_ref().as_ref().ok_or(TokenError::UnknownKey)?;
        Claims::read(token, audience, keys, now)
    }

    /// Checks keys without putting them in force.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn check(bundle: &JwtBundle) -> Result<(), JwtKeysError> {
        Keys::read(bundle).map(drop)
    }

    /// Puts keys in force; `None` for none.
    ///
    /// # Errors
    /// When they cannot be used; what was in force before still is.
    pub fn replace(&self, bundle: Option<&JwtBundle>) -> Result<(), JwtKeysError> {
        let keys = bundle.map(Keys::read).transpose()?;
        let same = match (&keys, &**self.current.load()) {
            (Some(new), Some(old)) => new.trust_domain == old.trust_domain && new.points == old.points,
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.current.store(Arc::new(keys));
            self.changed.send_modify(|generation| *generation += 1);
        }
        Ok(())
    }

    /// The keys in force.
    pub(super) fn current(&self) -> Arc<Option<Keys>> {
        self.current.load_full()
    }

    /// Told when they change; the value counts the changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use outrider_proto::v1::JwtKey;

    use super::*;

    #[test]
    fn a_bundle_with_one_unusable_key_is_refused_whole_and_what_was_in_force_stays() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        let bundle = |keys: Vec<(&str, Vec<u8>)>| JwtBundle {
            trust_domain: "mesh.internal".to_owned(),
            keys: keys.into_iter().map(|(id, point)| JwtKey { id: id.to_owned(), point }).collect(),
        };
        let keys = JwtKeys::default();
        keys.replace(Some(&bundle(vec![("a", point.clone())]))).unwrap();
        assert_eq!(*keys.changes().borrow(), 1);
        let mut off_the_curve = point.clone();
        off_the_curve[64] ^= 1;
        for broken in [
            vec![("a", point.clone()), ("", point.clone())],
            vec![("a", point.clone()), ("a", point.clone())],
            vec![("a b", point.clone())],
            vec![("a", point[..64].to_vec())],
            vec![("a", off_the_curve)],
            vec![("a", [vec![2], point[1..33].to_vec()].concat())],
        ] {
            assert!(keys.replace(Some(&bundle(broken))).is_err());
        }
        assert!(keys.current().as_ref().as_ref().unwrap().find("a").is_some());
        let json: serde_json::Value = serde_json::from_slice(&keys.current().as_ref().as_ref().unwrap().to_json()).unwrap();
        assert_eq!((json["keys"][0]["kid"].as_str(), json["keys"][0]["crv"].as_str()), (Some("a"), Some("P-256")));
        keys.replace(Some(&bundle(vec![("a", point)]))).unwrap();
        assert_eq!(*keys.changes().borrow(), 1, "the same keys are no change");
    }
}
