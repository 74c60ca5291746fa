//! The attributes of a call that expressions can name.

use std::fmt;

/// An attribute, and whether it is a text, a number or a boolean.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attribute {
    /// `source.identity`, text: the SPIFFE ID.
    SourceIdentity,
    /// `source.trustDomain`, text.
    SourceTrustDomain,
    /// `source.namespace`, text.
    SourceNamespace,
    /// `source.serviceAccount`, text: the name without namespace.
    SourceServiceAccount,
    /// `source.ip`, text.
    SourceIp,
    /// `destination.service`, text: the name without namespace.
    DestinationService,
    /// `destination.namespace`, text.
    DestinationNamespace,
    /// `destination.port`, number.
    DestinationPort,
    /// `destination.labels["…"]`, text.
    DestinationLabel(Box<str>),
    /// `request.method`, text.
    RequestMethod,
    /// `request.host`, text: canonical, without port.
    RequestHost,
    /// `request.path`, text: canonical, without query.
    RequestPath,
    /// `request.query`, text: without `?`, empty where there is none.
    RequestQuery,
    /// `request.headers["…"]`, text.
    RequestHeader(Box<str>),
    /// `connection.mtls`, boolean: whether the caller proved an identity.
    ConnectionMtls,
    /// `connection.protocol`, text: `tcp`, `http`, `http2` or `grpc`.
    ConnectionProtocol,
}

/// What an attribute is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttributeType {
    Text,
    Number,
    Flag,
}

/// Those without a key, by name.
pub(crate) const PLAIN: [(&str, Attribute); 14] = [
    ("source.identity", Attribute::SourceIdentity),
    ("source.trustDomain", Attribute::SourceTrustDomain),
    ("source.namespace", Attribute::SourceNamespace),
    ("source.serviceAccount", Attribute::SourceServiceAccount),
    ("source.ip", Attribute::SourceIp),
    ("destination.service", Attribute::DestinationService),
    ("destination.namespace", Attribute::DestinationNamespace),
    ("destination.port", Attribute::DestinationPort),
    ("request.method", Attribute::RequestMethod),
    ("request.host", Attribute::RequestHost),
    ("request.path", Attribute::RequestPath),
    ("request.query", Attribute::RequestQuery),
    ("connection.mtls", Attribute::ConnectionMtls),
    ("connection.protocol", Attribute::ConnectionProtocol),
];

impl Attribute {
    pub(crate) fn plain(name: &str) -> Option<Self> {
        PLAIN.iter().find(|(own, _)| *own == name).map(|(_, attribute)| attribute.clone())
    }

    /// Whether only HTTP requests have it.
    pub fn is_http(&self) -> bool {
        matches!(self, Self::RequestMethod | Self::RequestHost | Self::RequestPath | Self::RequestQuery | Self::RequestHeader(_))
    }

    /// The name of the header that it is, in lower case.
    pub fn header(&self) -> Option<&str> {
        match self {
            Self::RequestHeader(name) => Some(name),
            _ => None,
        }
    }

    pub(crate) fn kind(&self) -> AttributeType {
        match self {
            Self::DestinationPort => AttributeType::Number,
            Self::ConnectionMtls => AttributeType::Flag,
            _ => AttributeType::Text,
        }
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DestinationLabel(key) => write!(f, "destination.labels[\"{key}\"]"),
            Self::RequestHeader(name) => write!(f, "request.headers[\"{name}\"]"),
            plain => f.write_str(PLAIN.iter().find(|(_, own)| own == plain).map(|(name, _)| *name).unwrap_or_default()),
        }
    }
}
