//! Join tokens as an agent sees them: a secret, and the pin of the root it may trust.

use std::str::FromStr;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// A one-time join token: `orj1.<secret>.<SHA-256 of the root's public key>`.
#[derive(Clone)]
pub struct JoinToken {
    text: Zeroizing<String>,
    pin: [u8; 32],
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("JoinToken(secret)")
    }
}

impl FromStr for JoinToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "not a join token: copy the whole line that `outrider token create` prints, it starts with `orj1.`";
        let text = text.trim();
        let mut parts = text.split('.');
        let (Some("orj1"), Some(secret), Some(pin), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(SHAPE);
        };
        URL_SAFE_NO_PAD.decode(secret).ok().filter(|secret| secret.len() == 32).ok_or(SHAPE)?;
        let pin = URL_SAFE_NO_PAD.decode(pin).ok().and_then(|pin| pin.try_into().ok()).ok_or(SHAPE)?;
        Ok(Self { text: Zeroizing::new(text.to_owned()), pin })
    }
}

impl JoinToken {
    /// The whole text, for the control plane only.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the public key of the root that the control plane must show.
    pub fn pin(&self) -> [u8; 32] {
        self.pin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_whole_or_not_at_all() {
        let part = URL_SAFE_NO_PAD.encode([7; 32]);
        let token: JoinToken = format!(" orj1.{part}.{part}\n").parse().unwrap();
        assert_eq!(token.pin(), [7; 32]);
        assert!(!format!("{token:?}").contains(&part));
        for text in
            ["", "orj1", &format!("orj1.{part}"), &format!("orj2.{part}.{part}"), &format!("orj1.{part}.{part}.x"), "orj1.a.b"]
        {
            assert!(text.parse::<JoinToken>().is_err(), "{text}");
        }
    }
}
