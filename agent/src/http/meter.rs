//! What a caller may send of a body: so much, and not too slowly.

use tokio::time::{Duration, Instant};

use super::{BodyError, Limits};
use crate::alarm;

/// Time before the rate of a body counts.
const GRACE: Duration = Duration::from_secs(10);

/// Counts one request's body.
#[derive(Debug)]
pub struct Meter {
    began: Instant,
    taken: usize,
    most: usize,
    /// Bytes a second; none for streams that may rest.
    rate: Option<usize>,
    time: Duration,
    stall: Duration,
}

impl Meter {
    /// A meter that begins now. `may_rest` is for calls whose bodies are streams of messages.
    pub fn new(limits: &Limits, may_rest: bool) -> Self {
        let rate = Some(limits.body_rate).filter(|_| !may_rest);
        Self { began: alarm::instant(), taken: 0, most: limits.body_bytes, rate, time: limits.request, stall: limits.stall }
    }

    /// How long an HTTP/1.1 caller may pause.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// Takes some bytes.
    ///
    /// # Errors
    /// When they are too many, or come too slowly.
    pub fn take(&mut self, bytes: usize) -> Result<(), BodyError> {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken > self.most {
            return Err(BodyError::TooLarge);
        }
        let elapsed = alarm::instant().saturating_duration_since(self.began);
        let seconds = usize::try_from(elapsed.saturating_sub(GRACE).as_secs()).unwrap_or(usize::MAX);
        match self.rate {
            Some(rate) if self.taken < rate.saturating_mul(seconds) => Err(BodyError::TooSlow("the body arrives too slowly")),
            _ if elapsed > self.time => Err(BodyError::TooSlow("the request takes longer than a request may")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bodies_end_at_their_size_and_below_their_rate() {
        let limits = Limits { body_bytes: 5000, body_rate: 100, ..Limits::default() };
        let mut meter = Meter::new(&limits, false);
        assert!(meter.take(5000).is_ok());
        assert!(matches!(meter.take(1), Err(BodyError::TooLarge)));
        // A byte a second is enough for as long as nobody looks at the rate, and no longer.
        let last = async |rests: bool| {
            let mut meter = Meter::new(&limits, rests);
            for second in 0..60 {
                tokio::time::advance(Duration::from_secs(1)).await;
                if meter.take(1).is_err() {
                    return second;
                }
            }
            60
        };
        assert_eq!((last(false).await, last(true).await), (10, 60));
        let mut meter = Meter::new(&limits, true);
        tokio::time::advance(limits.request + Duration::from_secs(1)).await;
        assert!(matches!(meter.take(1), Err(BodyError::TooSlow(_))), "longer than a request may take");
    }
}
