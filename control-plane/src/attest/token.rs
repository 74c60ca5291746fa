//! The text of a join token: `orj1.SECRET.PIN`, both base64url. The pin is the hash of the root's key, by which the bearer
//! knows the control plane.

use aws_lc_rs::{digest, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::store::TokenHash;

const VERSION: &str = "orj1";

/// 32 random bytes.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secret([u8; 32]);

impl Secret {
    /// A new one; `None` when the system gives no randomness.
    pub(crate) fn random() -> Option<Self> {
        let mut secret = Self([0; 32]);
        rand::fill(&mut secret.0).ok()?;
        Some(secret)
    }

    /// What is stored. The secret is random and long: a plain hash cannot be turned back.
    pub(crate) fn hash(&self) -> TokenHash {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, &self.0).as_ref());
        hash
    }
}

/// A token's text, taken apart.
pub(crate) struct TokenText {
    pub(crate) secret: Secret,
    /// SHA-256 of the root's subject public key info.
    pub(crate) pin: [u8; 32],
}

impl TokenText {
    /// Reads a token; `None` when it is not one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::parse_as(VERSION, text)
    }

    /// Reads a token that begins with another word.
    pub(crate) fn parse_as(wanted: &str, text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (version, secret, pin) = (parts.next()?, parts.next()?, parts.next()?);
        if version != wanted || parts.next().is_some() {
            return None;
        }
        let decode = |part: &str| {
            let mut bytes = [0; 32];
            let length = URL_SAFE_NO_PAD.decode_slice(part, &mut bytes).ok()?;
            (length == 32).then_some(bytes)
        };
        Some(Self { secret: Secret(decode(secret)?), pin: decode(pin)? })
    }

    /// The text.
    pub(crate) fn format(&self) -> String {
        self.format_as(VERSION)
    }

    /// The text, beginning with another word.
    pub(crate) fn format_as(&self, version: &str) -> String {
        format!("{version}.{}.{}", URL_SAFE_NO_PAD.encode(self.secret.0), URL_SAFE_NO_PAD.encode(self.pin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text() {
        let token = TokenText { secret: Secret::random().unwrap(), pin: [9; 32] };
        let read = TokenText::parse(&token.format()).unwrap();
        assert_eq!((read.secret.hash(), read.pin), (token.secret.hash(), [9; 32]));
    }

    #[test]
    fn what_is_not_exactly_a_token_is_refused() {
        let good = TokenText { secret: Secret::random().unwrap(), pin: [9; 32] }.format();
        for text in [
            "",
            "orj1",
            "orj1..",
            &good.replace("orj1", "orj2"),
            &format!("{good}.x"),
            &format!("{good}A"),
            &good[..good.len() - 1],
        ] {
            assert!(TokenText::parse(text).is_none(), "{text} was read");
        }
    }
}
