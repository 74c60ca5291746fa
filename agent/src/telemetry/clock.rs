//! The time of day as log lines write it: the second is written once, however many lines it has.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// Length of `2026-11-25T20:45:21`.
const SECOND: usize = 19;

/// How long the system's clock is believed to go on as it did: reading it costs as much as a small field.
const KEPT: Duration = Duration::from_millis(500);

/// One worker's clock.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// When the system's clock was read, and what it said.
    read: Cell<Option<(Instant, SystemTime)>>,
    second: RefCell<(i64, [u8; SECOND])>,
}

impl Clock {
    /// Writes `now`, in UTC with microseconds (RFC 3339).
    pub(super) fn write(&self, now: Instant, out: &mut Vec<u8>) {
        let known = self.read.get().map(|(at, said)| (now.saturating_duration_since(at), said));
        let time = match known.filter(|(since, _)| *since < KEPT) {
            Some((since, said)) => said + since,
            None => {
                let said = SystemTime::now();
                self.read.set(Some((now, said)));
                said
            }
        };
        self.write_at(time, out);
    }

    fn write_at(&self, time: SystemTime, out: &mut Vec<u8>) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = i64::try_from(since.as_secs()).unwrap_or_default();
        let mut cached = self.second.borrow_mut();
        if cached.0 != second || cached.1.first() == Some(&0) {
            let text = jiff::Timestamp::from_second(second).unwrap_or_default().to_string();
            let text = text.as_bytes().get(..SECOND).and_then(|text| text.try_into().ok());
            *cached = (second, text.unwrap_or(*b"1970-01-01T00:00:00"));
        }
        out.extend_from_slice(&cached.1);
        let mut fraction = *b".000000Z";
        let mut left = since.subsec_micros();
        for digit in fraction.iter_mut().skip(1).take(6).rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
        }
        out.extend_from_slice(&fraction);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_says_what_a_calendar_says() {
        let clock = Clock::default();
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_000_001, "1970-01-01T00:00:01.000001Z"),
            (951_782_400_123_456, "2000-02-29T00:00:00.123456Z"),
            (951_782_400_999_999, "2000-02-29T00:00:00.999999Z"),
        ] {
            let mut out = Vec::new();
            clock.write_at(UNIX_EPOCH + Duration::from_micros(micros), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
