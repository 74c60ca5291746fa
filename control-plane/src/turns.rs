//! Whose turn it is to be issued a leaf: so many at a time and so many a second in all, first come first served, and of one
//! identity no more than its share, so that nobody waits behind a flood of somebody else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use outrider_policy::SpiffeId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout_at},
};
use tonic::Status;

/// Issuances at a time. More do not make a machine faster.
const AT_ONCE: usize = 128;
/// Of one identity, under way and waiting.
const OF_ONE: usize = 32;
/// How long one waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);
/// Issuances that may come ahead of the rate: what a second earns, in fractions of one.
const AHEAD: f64 = 0.1;

/// Turns. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    of_one: Arc<Mutex<HashMap<SpiffeId, usize>>>,
    pace: Arc<Pace>,
}

/// A turn. Over when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    identity: SpiffeId,
    of_one: Arc<Mutex<HashMap<SpiffeId, usize>>>,
    permit: Option<OwnedSemaphorePermit>,
}

/// Why it is nobody's turn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoTurn {
    /// The identity has its share already.
    #[error("`{0}` asks for certificates too often: try again in a second")]
    Share(SpiffeId),
    /// Everybody waits for too long.
    #[error("more certificates are asked for than are issued in a second (`--issuance-rate`)")]
    Busy,
}

impl NoTurn {
    /// What the caller may know.
    pub(crate) fn outward(&self) -> Status {
        match self {
            Self::Share(_) => Status::resource_exhausted(self.to_string()),
            Self::Busy => Status::unavailable("the control plane is busy: try another replica, or again later"),
        }
    }

    /// The closed set of reasons in metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Share(_) => "too_often",
            Self::Busy => "busy",
        }
    }
}

/// So many a second, evenly (a generic cell rate algorithm: the moment at which everything so far is paid off).
#[derive(Debug)]
struct Pace {
    /// Between two.
    each: Duration,
    /// How far ahead of the rate they may come.
    ahead: Duration,
    paid: Mutex<Instant>,
}

impl Pace {
    fn new(a_second: u32) -> Self {
        let each = Duration::from_secs(1) / a_second.max(1);
        Self { each, ahead: Duration::from_secs_f64(AHEAD), paid: Mutex::new(Instant::now()) }
    }

    /// Takes the next moment, unless it comes after `until`.
    fn next(&self, now: Instant, until: Instant) -> Option<Instant> {
        // Nothing in here can panic half-way.
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let due = (*paid).max(now);
        let at = due.checked_sub(self.ahead).unwrap_or(now);
        if at > until {
            return None;
        }
        *paid = due + self.each;
        Some(at)
    }

    /// Gives a moment back that nobody used: whoever asks and goes away at once must not use up what others wait for.
    fn give_back(&self) {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = paid.checked_sub(self.each).unwrap_or(*paid);
    }
}

/// A moment that was taken and has not come yet.
struct Moment<'a> {
    pace: &'a Pace,
    came: bool,
}

impl Drop for Moment<'_> {
    fn drop(&mut self) {
        if !self.came {
            self.pace.give_back();
        }
    }
}

impl Turns {
    /// `a_second` is how many there are in a second at most.
    pub(crate) fn new(a_second: u32) -> Self {
        Self { all: Arc::new(Semaphore::new(AT_ONCE)), of_one: Arc::default(), pace: Arc::new(Pace::new(a_second)) }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// When the identity has its share already, or everybody waits for too long.
    pub(crate) async fn take(&self, identity: &SpiffeId) -> Result<Turn, NoTurn> {
        {
            let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
            let count = of_one.entry(identity.clone()).or_default();
            if *count >= OF_ONE {
                return Err(NoTurn::Share(identity.clone()));
            }
            *count += 1;
        }
        let until = Instant::now() + PATIENCE;
        let mut turn = Turn { identity: identity.clone(), of_one: Arc::clone(&self.of_one), permit: None };
        // The semaphore is fair: whoever came first is next, and the moments are given out in that order.
        let permit = timeout_at(until, Arc::clone(&self.all).acquire_owned()).await;
        turn.permit = Some(permit.map_err(|_| NoTurn::Busy)?.map_err(|_| NoTurn::Busy)?);
        let now = Instant::now();
        let at = self.pace.next(now, until).ok_or(NoTurn::Busy)?;
        let mut moment = Moment { pace: &self.pace, came: false };
        if at > now {
            sleep_until(at).await;
        }
        moment.came = true;
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = of_one.get_mut(&self.identity) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                of_one.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 1000;

    fn id(name: &str) -> SpiffeId {
        SpiffeId::new(&format!("spiffe://td/ns/a/sa/{name}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_identity_takes_no_more_than_its_share_of_the_turns() {
        let turns = Turns::new(RATE);
        let mut held = Vec::new();
        while let Ok(turn) = turns.take(&id("loud")).await {
            held.push(turn);
        }
        assert_eq!(held.len(), OF_ONE);
        assert_eq!(turns.take(&id("loud")).await.unwrap_err(), NoTurn::Share(id("loud")));
        assert!(turns.take(&id("calm")).await.is_ok(), "others have theirs");
        held.pop();
        assert!(turns.take(&id("loud")).await.is_ok());
        drop(held);
        assert!(turns.of_one.lock().unwrap().is_empty(), "nobody is remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_turns_are_taken_one_waits_and_not_for_ever() {
        let turns = Turns::new(RATE);
        let mut held = Vec::new();
        for number in 0..AT_ONCE {
            held.push(turns.take(&id(&format!("s{}", number / OF_ONE))).await.unwrap());
        }
        assert_eq!(turns.take(&id("late")).await.unwrap_err(), NoTurn::Busy);
        held.pop();
        assert!(turns.take(&id("late")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_away_before_the_turn_comes_takes_nothing_from_others() {
        let turns = Turns::new(RATE);
        // What may come ahead of the rate is used up: from here on everybody sleeps.
        for number in 0..RATE / 5 {
            drop(turns.take(&id(&format!("s{}", number % 50))).await.unwrap());
        }
        for _ in 0..20 * RATE {
            let loud = id("loud");
            let mut asked = std::pin::pin!(turns.take(&loud));
            assert!(futures_util::poll!(&mut asked).is_pending());
        }
        let begun = Instant::now();
        drop(turns.take(&id("calm")).await.unwrap());
        assert!(begun.elapsed() < Duration::from_millis(20), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_issued_in_a_second_than_the_rate_says_however_many_ask() {
        let turns = Turns::new(RATE);
        let begun = Instant::now();
        for number in 0..3 * RATE {
            drop(turns.take(&id(&format!("s{number}"))).await.unwrap());
        }
        // What may come ahead of the rate is the tenth of a second that is missing.
        let took = begun.elapsed();
        assert!((Duration::from_millis(2890)..Duration::from_millis(2910)).contains(&took), "{took:?}");
        tokio::time::advance(Duration::from_secs(60)).await;
        let begun = Instant::now();
        for number in 0..RATE {
            drop(turns.take(&id(&format!("s{number}"))).await.unwrap());
        }
        assert!(begun.elapsed() > Duration::from_millis(890), "a quiet minute earns no flood");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_over_the_rate_waits_in_order_and_its_tail_is_refused() {
        let turns = Turns::new(10);
        let mut asking = tokio::task::JoinSet::new();
        for number in 0..AT_ONCE {
            let turns = turns.clone();
            asking.spawn(async move { turns.take(&id(&format!("s{number}"))).await.map(drop) });
        }
        let answers = asking.join_all().await;
        let served = answers.iter().filter(|answer| answer.is_ok()).count();
        // Five seconds at ten a second, and the one that came ahead.
        assert!((51..=52).contains(&served), "{served}");
        assert!(answers.contains(&Err(NoTurn::Busy)));
        assert!(turns.of_one.lock().unwrap().is_empty(), "nobody is remembered");
    }
}
