//! The names of things in a mesh: namespaces, services, service accounts.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// Not an RFC 1123 label.
    #[error("`{0}` is not a name: 1 to 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit")]
    Label(String),
    /// Not two names with a slash between them.
    #[error("`{0}` is not of the form `namespace/name`")]
    Shape(String),
}

/// Implements `Display`, `FromStr` and the conversions that serde uses for a type with `new(&str)` and `as_str()`.
macro_rules! text_traits {
    ($type:ty, $problem:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl FromStr for $type {
            type Err = $problem;
            fn from_str(text: &str) -> Result<Self, $problem> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $type {
            type Error = $problem;
            fn try_from(text: String) -> Result<Self, $problem> {
                Self::new(&text)
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.as_str().to_owned()
            }
        }
    };
}
pub(crate) use text_traits;

/// One RFC 1123 label: a namespace, or the name of a resource in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(Arc<str>);

impl Label {
    /// Reads a label.
    pub fn new(text: &str) -> Result<Self, NameProblem> {
        if is_label(text) { Ok(Self(text.into())) } else { Err(NameProblem::Label(shown(text))) }
    }

    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
text_traits!(Label, NameProblem);

/// Whether `text` is an RFC 1123 label.
pub(crate) fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether `text` is one or more RFC 1123 labels with dots between them, at most 253 bytes: Kubernetes names accounts so.
pub(crate) fn is_dotted(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

/// `namespace/name` in one allocation, with the place of the slash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Pair {
    text: Arc<str>,
    slash: usize,
}

impl Pair {
    fn new(namespace: &str, name: &str, is_name: fn(&str) -> bool) -> Result<Self, NameProblem> {
        if !is_label(namespace) {
            return Err(NameProblem::Label(shown(namespace)));
        }
        if !is_name(name) {
            return Err(NameProblem::Label(shown(name)));
        }
        Ok(Self { text: format!("{namespace}/{name}").into(), slash: namespace.len() })
    }

    fn namespace(&self) -> &str {
        self.text.get(..self.slash).unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.text.get(self.slash + 1..).unwrap_or_default()
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

macro_rules! pair {
    ($(#[$doc:meta])* $type:ident, $is_name:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Pair);

        impl $type {
            /// Makes the name from its two parts.
            pub fn new(namespace: &str, name: &str) -> Result<Self, NameProblem> {
                Pair::new(namespace, name, $is_name).map(Self)
            }

            /// The namespace.
            pub fn namespace(&self) -> &str {
                self.0.namespace()
            }

            /// The name within the namespace.
            pub fn name(&self) -> &str {
                self.0.name()
            }

            /// Both, as `namespace/name`.
            pub fn as_str(&self) -> &str {
                &self.0.text
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl FromStr for $type {
            type Err = NameProblem;
            fn from_str(text: &str) -> Result<Self, NameProblem> {
                let (namespace, name) = text.split_once('/').ok_or_else(|| NameProblem::Shape(shown(text)))?;
                Self::new(namespace, name)
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameProblem;
            fn try_from(text: String) -> Result<Self, NameProblem> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.as_str().to_owned()
            }
        }
    };
}

pair! {
    /// A service of the mesh, `namespace/name`. Cheap to clone.
    ServiceName, is_label
}
pair! {
    /// What a workload runs as, `namespace/name`. Cheap to clone.
    ServiceAccount, is_dotted
}

/// Most labels of one workload.
pub const MAX_LABELS: usize = 64;

/// Whether these are the key and the value of a label, as Kubernetes writes them: `[prefix/]name` with a prefix of at most 253
/// characters, name and value of at most 63 letters, digits, `-`, `_` and `.` that begin and end with a letter or digit. A value
/// may be empty.
pub fn is_label_pair(key: &str, value: &str) -> bool {
    let word = |text: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        (1..=63).contains(&bytes.len())
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    word(name) && (value.is_empty() || word(value)) && prefix.is_none_or(|prefix| prefix.len() <= 253 && is_dotted(prefix))
}

impl ServiceName {
    /// The service that a host name means: `NAME.NAMESPACE`, `NAME.NAMESPACE.svc` or `NAME.NAMESPACE.svc.cluster.local`.
    ///
    /// The host is a canonical one (see [`crate::host`]): lower case, without port and trailing dot.
    pub fn from_host(host: &str) -> Option<Self> {
        let host = host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".svc")).unwrap_or(host);
        let (name, namespace) = host.split_once('.')?;
        Self::new(namespace, name).ok()
    }

    /// The host name that callers use, `NAME.NAMESPACE`.
    pub fn host(&self) -> String {
        format!("{}.{}", self.name(), self.namespace())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_names_a_service_in_three_spellings_and_no_other() {
        let files = ServiceName::new("shop", "files").unwrap();
        for host in ["files.shop", "files.shop.svc", "files.shop.svc.cluster.local"] {
            assert_eq!(ServiceName::from_host(host), Some(files.clone()), "{host}");
        }
        for host in [
            "files",
            "files.shop.",
            "a.files.shop",
            "files.shop.local",
            "files.shop.svc.cluster.local.evil.com",
            ".shop",
            "files.",
            "Files.shop",
            "10.0.0.1",
        ] {
            assert_eq!(ServiceName::from_host(host), None, "{host}");
        }
    }

    #[test]
    fn labels_of_workloads_are_those_of_kubernetes() {
        for (key, value) in [("app", "orders"), ("app.kubernetes.io/name", "Orders_1.2"), ("a", ""), ("A-b_c.d", "1")] {
            assert!(is_label_pair(key, value), "{key}={value}");
        }
        let long = "a".repeat(64);
        for (key, value) in [
            ("", "a"),
            ("a", "-a"),
            ("-a", "a"),
            ("a/", "b"),
            ("/a", "b"),
            ("a/b/c", "d"),
            ("a", "b c"),
            ("é", "a"),
            (&long, "a"),
            ("a", &long),
        ] {
            assert!(!is_label_pair(key, value), "{key}={value}");
        }
    }

    #[test]
    fn names_are_rfc_1123_labels() {
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "é", &"a".repeat(64)] {
            assert!(Label::new(bad).is_err(), "{bad}");
        }
        assert!("shop/orders".parse::<ServiceName>().is_ok());
        assert!("shop/orders/x".parse::<ServiceName>().is_err());
        assert!("orders".parse::<ServiceName>().is_err());
        assert!("shop/a.b".parse::<ServiceName>().is_err());
        assert!("shop/a.b".parse::<ServiceAccount>().is_ok());
    }
}
