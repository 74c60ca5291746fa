//! How many retries there may be: a share of the requests of the last seconds, and a floor for where there are few. No clock:
//! time is passed in.

use std::time::Duration;

/// Retries for each hundred requests.
const PERCENT: u32 = 20;
/// Retries within the window that are there without any requests.
const FLOOR: u32 = 3;
/// Slots of the window, a second each.
const SLOTS: usize = 10;

/// The budget of retries for one service. Times are since the worker's start.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    slots: [Slot; SLOTS],
    /// Second of the newest slot.
    second: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    requests: u32,
    retries: u32,
}

impl Budget {
    /// A request was made, retries not counted.
    pub(super) fn request(&mut self, now: Duration) {
        self.turn(now);
        let slot = self.newest();
        slot.requests = slot.requests.saturating_add(1);
    }

    /// Takes a retry out of the budget; false when there is none left.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        self.turn(now);
        let sum = |each: fn(&Slot) -> u32| self.slots.iter().map(each).fold(0, u32::saturating_add);
        let (requests, retries) = (sum(|slot| slot.requests), sum(|slot| slot.retries));
        let allowed = u64::from(requests) * u64::from(PERCENT) / 100;
        if u64::from(retries) >= allowed.max(FLOOR.into()) {
            return false;
        }
        self.newest().retries += 1;
        true
    }

    fn newest(&mut self) -> &mut Slot {
        let [first, rest @ ..] = &mut self.slots;
        let at = (self.second % SLOTS as u64) as usize;
        at.checked_sub(1).and_then(|at| rest.get_mut(at)).unwrap_or(first)
    }

    /// Empties the slots of seconds that have passed.
    fn turn(&mut self, now: Duration) {
        let second = now.as_secs();
        let passed = second.saturating_sub(self.second).min(SLOTS as u64);
        for step in 0..passed {
            let at = ((second - step) % SLOTS as u64) as usize;
            if let Some(slot) = self.slots.get_mut(at) {
                *slot = Slot::default();
            }
        }
        self.second = self.second.max(second);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_requests_have_the_floor_and_many_their_share() {
        let mut budget = Budget::default();
        let taken = |budget: &mut Budget, now| (0..1000).filter(|_| budget.take(now)).count();
        assert_eq!(taken(&mut budget, Duration::ZERO), FLOOR as usize);
        for _ in 0..500 {
            budget.request(Duration::from_secs(1));
        }
        assert_eq!(taken(&mut budget, Duration::from_secs(1)), 100 - FLOOR as usize);
        assert_eq!(taken(&mut budget, Duration::from_secs(60)), FLOOR as usize, "what is long past gives nothing");
    }

    proptest! {
        #[test]
        fn in_no_window_are_there_more_retries_than_the_share_or_the_floor(
            steps in prop::collection::vec((0u64..1500, any::<bool>()), 1..400),
        ) {
            let (mut budget, mut now) = (Budget::default(), Duration::ZERO);
            let mut happened = Vec::new();
            for (millis, is_request) in steps {
                now += Duration::from_millis(millis);
                if is_request {
                    budget.request(now);
                    happened.push((now.as_secs(), true));
                } else if budget.take(now) {
                    happened.push((now.as_secs(), false));
                    let recent = |kind| happened.iter().filter(|(at, each)| *each == kind && at + SLOTS as u64 > now.as_secs()).count();
                    prop_assert!(recent(false) <= (recent(true) * PERCENT as usize / 100).max(FLOOR as usize));
                }
            }
        }
    }
}
