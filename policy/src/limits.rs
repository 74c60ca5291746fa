//! How many requests a port takes: the `limits` section of a policy.

use serde::{Deserialize, Serialize};

/// Most requests in a limit, and most at once.
pub const MAX_REQUESTS: u64 = 1_000_000;

/// So many requests in a unit of time, at each agent of the service and for each of its ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// How many, 1 to [`MAX_REQUESTS`].
    #[serde(deserialize_with = "bounded")]
    pub requests: u64,
    /// In which time.
    pub unit: LimitUnit,
    /// How many may come at once, 1 to [`MAX_REQUESTS`]; as many as `requests` if it is not written.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "bounded_if_written")]
    pub burst: Option<u64>,
    /// What is counted together.
    #[serde(default)]
    pub key: LimitKey,
    /// The ports that it is for; all of the service's if none is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "crate::rule::at_least_one")]
    pub ports: Vec<u16>,
}

impl Limits {
    /// Whether it is for this port.
    pub fn covers(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }

    /// Whether some port can be under both.
    pub fn meets(&self, other: &Self) -> bool {
        self.ports.is_empty() || other.ports.is_empty() || self.ports.iter().any(|port| other.ports.contains(port))
    }

    /// How many may come at once.
    pub fn burst(&self) -> u64 {
        self.burst.unwrap_or(self.requests)
    }

    /// Nanoseconds after which one more may come, at least 1.
    pub fn interval(&self) -> u64 {
        (self.unit.seconds().saturating_mul(1_000_000_000) / self.requests.max(1)).max(1)
    }
}

/// The time that a limit counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitUnit {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
}

impl LimitUnit {
    /// Its seconds.
    pub fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        }
    }
}

/// What a limit counts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum LimitKey {
    /// All requests to the port.
    #[default]
    Port,
    /// Those of one caller's identity; callers without one are counted together.
    Source,
}

fn bounded<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = u64::deserialize(deserializer)?;
    let wrong = || serde::de::Error::custom(format!("`{number}` is not a whole number from 1 to {MAX_REQUESTS}"));
    if (1..=MAX_REQUESTS).contains(&number) { Ok(number) } else { Err(wrong()) }
}

fn bounded_if_written<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    bounded(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_say_how_often_and_how_many_at_once() {
        let read = |text: &str| serde_json::from_str::<Limits>(text);
        let limits = read(r#"{"requests": 600, "unit": "Minute"}"#).unwrap();
        assert_eq!((limits.interval(), limits.burst(), limits.key), (100_000_000, 600, LimitKey::Port));
        assert!(limits.covers(80));
        let limits = read(r#"{"requests": 5, "unit": "Second", "burst": 1, "key": "Source", "ports": [80]}"#).unwrap();
        assert_eq!((limits.interval(), limits.burst(), limits.covers(81)), (200_000_000, 1, false));
        for wrong in [
            r#"{"requests": 0, "unit": "Second"}"#,
            r#"{"requests": 1000001, "unit": "Second"}"#,
            r#"{"requests": 1, "unit": "Second", "burst": 0}"#,
            r#"{"requests": 1, "unit": "Day"}"#,
            r#"{"requests": 1, "unit": "Second", "ports": []}"#,
            r#"{"requests": 1, "unit": "Second", "per": "x"}"#,
            r#"{"requests": 1}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
