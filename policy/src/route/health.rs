//! Active health checks of the backends of a route. The Gateway API has no field for them: an annotation says them.

use std::time::Duration;

use super::resource::Route;
use crate::path;

/// The annotation: `path=/healthz interval=5s timeout=1s unhealthy=3 healthy=2`, all but `path` with these defaults.
const ANNOTATION: &str = "outrider.dev/health-check";
/// Beginning of the annotations that are ours: one that is not known would be a setting that does nothing.
const OURS: &str = "outrider.dev/";

/// How endpoints are asked how they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Path of the request.
    pub path: String,
    /// Pause between two requests.
    pub interval: Duration,
    /// Time for an answer.
    pub timeout: Duration,
    /// Bad answers in a row after which an endpoint gets no requests.
    pub unhealthy: u32,
    /// Good answers in a row after which it gets them again.
    pub healthy: u32,
}

impl HealthCheck {
    /// Reads the annotation.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut check = Self {
            path: String::new(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            unhealthy: 3,
            healthy: 2,
        };
        let duration = |text: &str| text.parse::<super::RouteDuration>().map(super::RouteDuration::get);
        let count = |text: &str| {
            let number = text.parse::<u32>().ok().filter(|number| (1..=100).contains(number));
            number.ok_or_else(|| format!("`{text}` is not a number from 1 to 100"))
        };
        for setting in text.split_ascii_whitespace() {
            match setting.split_once('=') {
                Some(("path", value)) => value.clone_into(&mut check.path),
                Some(("interval", value)) => check.interval = duration(value)?,
                Some(("timeout", value)) => check.timeout = duration(value)?,
                Some(("unhealthy", value)) => check.unhealthy = count(value)?,
                Some(("healthy", value)) => check.healthy = count(value)?,
                _ => return Err(format!("`{setting}` is none of path=, interval=, timeout=, unhealthy= and healthy=")),
            }
        }
        if path::canonical(check.path.as_bytes()).ok().is_none_or(|canonical| *canonical != *check.path) {
            return Err("`path=` is missing, or not a path in its canonical spelling".to_owned());
        }
        if check.interval < Duration::from_millis(100) || check.timeout < Duration::from_millis(10) {
            return Err("`interval` is at least 100ms, `timeout` at least 10ms".to_owned());
        }
        Ok(check)
    }
}

impl Route {
    /// How its backends are asked how they are, if they are.
    pub fn health_check(&self) -> Option<HealthCheck> {
        self.metadata.annotations.get(ANNOTATION).and_then(|text| HealthCheck::read(text).ok())
    }

    /// What is wrong with the annotations that are ours.
    pub(super) fn annotation_problems(&self) -> Vec<String> {
        let ours = self.metadata.annotations.iter().filter(|(name, _)| name.starts_with(OURS));
        ours.filter_map(|(name, value)| match name.as_str() {
            ANNOTATION => HealthCheck::read(value).err().map(|problem| format!("`{ANNOTATION}`: {problem}")),
            _ => Some(format!("unknown annotation `{name}`: `{ANNOTATION}` is the one that routes have")),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_check_is_read_whole_or_not_at_all() {
        let check = HealthCheck::read("path=/healthz interval=500ms unhealthy=5").unwrap();
        assert_eq!((check.path.as_str(), check.interval.as_millis(), check.timeout.as_secs()), ("/healthz", 500, 1));
        assert_eq!((check.unhealthy, check.healthy), (5, 2));
        for text in [
            "",
            "interval=5s",
            "path=healthz",
            "path=/a/../b",
            "path=/ interval=1ms",
            "path=/ unhealthy=0",
            "path=/ port=1",
            "path=/ x",
        ] {
            assert!(HealthCheck::read(text).is_err(), "{text}");
        }
    }
}
