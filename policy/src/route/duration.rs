//! Durations as the Gateway API writes them (GEP-2257): `1h30m`, `500ms`, `0s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A duration: one to four parts of up to five digits and `h`, `m`, `s` or `ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RouteDuration(Duration);

impl RouteDuration {
    /// The duration.
    pub fn get(self) -> Duration {
        self.0
    }

    /// The duration, with zero for "no bound".
    pub fn bound(self) -> Option<Duration> {
        Some(self.0).filter(|duration| !duration.is_zero())
    }
}

impl FromStr for RouteDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{}` is not a duration: write `30s`, `500ms` or `1m30s`", text.chars().take(40).collect::<String>());
        let (mut rest, mut sum, mut parts) = (text, Duration::ZERO, 0);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            let units = after.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, after) = after.split_at(units);
            let number: u64 = number.parse().ok().filter(|_| digits <= 5).ok_or_else(wrong)?;
            sum += match unit {
                "h" => Duration::from_secs(number * 3600),
                "m" => Duration::from_secs(number * 60),
                "s" => Duration::from_secs(number),
                "ms" => Duration::from_millis(number),
                _ => return Err(wrong()),
            };
            (rest, parts) = (after, parts + 1);
        }
        if (1..=4).contains(&parts) { Ok(Self(sum)) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for RouteDuration {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RouteDuration> for String {
    fn from(duration: RouteDuration) -> Self {
        duration.to_string()
    }
}

impl fmt::Display for RouteDuration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0.as_secs(), self.0.subsec_millis());
        let (hours, minutes, left) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        for (number, unit) in [(hours, "h"), (minutes, "m"), (left, "s"), (u64::from(millis), "ms")] {
            if number > 0 {
                write!(out, "{number}{unit}")?;
            }
        }
        if self.0.is_zero() { out.write_str("0s") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_alike() {
        for (text, millis, written) in [
            ("500ms", 500, "500ms"),
            ("1m30s", 90_000, "1m30s"),
            ("90s", 90_000, "1m30s"),
            ("0s", 0, "0s"),
            ("2h", 7_200_000, "2h"),
        ] {
            let read: RouteDuration = text.parse().unwrap();
            assert_eq!((read.get().as_millis(), read.to_string().as_str()), (millis, written));
        }
        for text in ["", "1", "s", "1.5s", "-1s", "100000s", "1s1s1s1s1s", "1d", "1 s"] {
            assert!(text.parse::<RouteDuration>().is_err(), "{text}");
        }
    }
}
