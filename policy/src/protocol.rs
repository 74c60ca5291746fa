//! What is spoken on a port. Declared, never guessed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The protocol that a service declares for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// Opaque bytes: only identity, address and port can be decided on.
    #[serde(rename = "tcp")]
    Tcp,
    /// HTTP/1.1, also with upgrades.
    #[serde(rename = "http")]
    Http,
    /// HTTP/2.
    #[serde(rename = "http2")]
    Http2,
    /// gRPC on HTTP/2.
    #[serde(rename = "grpc")]
    Grpc,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Http, Self::Http2, Self::Grpc];

    /// Whether rules on methods, paths, hosts and headers can apply.
    pub fn is_http(self) -> bool {
        !matches!(self, Self::Tcp)
    }

    /// The name in configuration, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is none of the protocols.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a protocol: tcp, http, http2 or grpc")]
pub struct UnknownProtocol(String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;
    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        Self::ALL.into_iter().find(|protocol| protocol.as_str() == text).ok_or_else(|| UnknownProtocol(text.to_owned()))
    }
}
