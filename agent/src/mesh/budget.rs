//! What a peer may send that costs us something and carries nothing: pings, resets, window updates, frames that come late.

use tokio::time::Instant;

use crate::http::Limits;

/// Bytes that it takes from us for one more window update.
const BYTES_EACH: u32 = 4 << 10;
/// What a stream that the peer opens and resets costs: the work that was done for it.
pub(super) const RESET_COST: u32 = 8;
/// What a stream that was answered earns.
const ANSWER_EARNS: u32 = 4;

/// The budget of one connection.
#[derive(Debug)]
pub(super) struct Budget {
    left: u32,
    /// Frames that a peer may send at once, and how many of them it earns back a second.
    burst: u32,
    refill: u32,
    since: Instant,
    sent: u32,
}

impl Budget {
    /// A full one, as the agent's limits have it.
    pub(super) fn new(limits: &Limits) -> Self {
        let (burst, refill) = (limits.control_frames, limits.control_rate);
        Self { left: burst, burst, refill, since: Instant::now(), sent: 0 }
    }

    /// Takes `cost` out of it. `false` when there is not enough left.
    pub(super) fn spend(&mut self, cost: u32) -> bool {
        if self.left < cost {
            let earned = self.since.elapsed().as_millis().saturating_mul(u128::from(self.refill)) / 1000;
            self.since = Instant::now();
            self.earn(u32::try_from(earned).unwrap_or(self.burst));
        }
        let left = self.left.checked_sub(cost);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    /// Data went to the peer.
    pub(super) fn sent(&mut self, bytes: u32) {
        self.sent += bytes;
        self.earn(self.sent / BYTES_EACH);
        self.sent %= BYTES_EACH;
    }

    /// A stream was answered.
    pub(super) fn answered(&mut self) {
        self.earn(ANSWER_EARNS);
    }

    fn earn(&mut self, frames: u32) {
        self.left = self.left.saturating_add(frames).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_spent_and_comes_back() {
        let limits = Limits { control_frames: 70, control_rate: 7, ..Limits::default() };
        let mut budget = Budget::new(&limits);
        assert!((0..70).all(|_| budget.spend(1)) && !budget.spend(1));
        budget.sent(BYTES_EACH * 2 + 1);
        assert!(budget.spend(2) && !budget.spend(1));
        budget.answered();
        assert!(budget.spend(ANSWER_EARNS) && !budget.spend(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(budget.spend(7) && !budget.spend(1));
    }
}
