//! Times and durations as people write and read them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Reads `90s`, `15m`, `1h30m`.
///
/// # Errors
/// When the text is no positive duration; the message names the way out.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let way_out = || format!("`{text}` is not a duration: write for example `90s`, `15m` or `1h30m`");
    let parsed: SignedDuration = text.parse().map_err(|_| way_out())?;
    Duration::try_from(parsed).ok().filter(|duration| !duration.is_zero()).ok_or_else(way_out)
}

/// A duration as short as it stays useful: `12s`, `4m`, `3h`, `9d`.
pub(crate) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A duration exactly as it could be typed again: `90s`, `1h 30m`.
pub(crate) fn exact(duration: Duration) -> String {
    SignedDuration::try_from(duration).map_or_else(|_| short(duration), |duration| format!("{duration:#}"))
}

/// A moment relative to now: `3m ago`, `in 42m`; `-` when unknown.
pub(crate) fn relative(moment: Option<Timestamp>, now: Timestamp) -> String {
    let Some(moment) = moment else { return String::new() };
    match Duration::try_from(moment.duration_since(now)) {
        Ok(ahead) if !ahead.is_zero() => format!("in {}", short(ahead)),
        Ok(_) => "now".into(),
        Err(_) => format!("{} ago", short(moment.duration_since(now).unsigned_abs())),
    }
}

/// Unix seconds of the wire, where 0 means unknown.
pub(crate) fn from_seconds(seconds: i64) -> Option<Timestamp> {
    if seconds == 0 { None } else { Timestamp::from_second(seconds).ok() }
}

/// Unix nanoseconds of the wire, where 0 means unknown.
pub(crate) fn from_nanoseconds(nanoseconds: i64) -> Option<Timestamp> {
    if nanoseconds == 0 { None } else { Timestamp::from_nanosecond(i128::from(nanoseconds)).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5_400)));
        for wrong in ["", "5", "-5s", "0s", "soon", "5 bananas"] {
            assert!(duration(wrong).unwrap_err().contains("90s"), "{wrong}");
        }
    }

    #[test]
    fn an_exact_duration_reads_back_as_itself() {
        for milliseconds in [1, 300, 59_000, 60_000, 90_000, 600_000, 3_600_000, 5_461_000, 90_000_000] {
            let duration_of = Duration::from_millis(milliseconds);
            assert_eq!(duration(&exact(duration_of)), Ok(duration_of));
        }
    }

    #[test]
    fn moments_are_told_from_now() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).ok();
        assert_eq!(relative(at(2_520), now), "in 42m");
        assert_eq!(relative(at(-10_800), now), "3h ago");
        assert_eq!(relative(at(0), now), "now");
        assert_eq!(relative(None, now), "");
    }
}
