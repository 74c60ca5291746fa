//! Fairness between callers: what one of them sends at once must not take all places in which requests wait for a connection. Whoever
//! finds no place free waits in line; callers take turns, however long their lines are.

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::IpAddr,
    rc::{Rc, Weak},
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use crate::{
    alarm::within,
    identity::Peer,
    refusal::{Reason, Refusal},
};

/// Requests of one caller's connection that may wait for a connection to the program at a time: a quarter of all.
const SIDE_BY_SIDE: usize = super::breaker::CONNECTING / 4;
/// Requests that may stand in line, and those of one caller: half is left to everybody else.
const LINE: usize = 4096;
const LINE_EACH: usize = LINE / 2;

/// Whose turn it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Caller {
    /// The program beside the agent.
    #[default]
    Own,
    /// Who proved this identity, on however many connections.
    Member(Box<str>),
    /// Who proved nothing, from there.
    Stranger(IpAddr),
}

/// The requests of one caller's connection that need a new connection to the program, so many at a time.
#[derive(Debug)]
pub struct Turnstile {
    turns: Semaphore,
    caller: Caller,
}

impl Default for Turnstile {
    fn default() -> Self {
        Self { turns: Semaphore::new(SIDE_BY_SIDE), caller: Caller::Own }
    }
}

impl Turnstile {
    /// That of a connection of this caller.
    pub fn of(peer: &Peer) -> Rc<Self> {
        let caller = match peer.id() {
            Some(id) => Caller::Member(id.as_str().into()),
            None => Caller::Stranger(peer.address().ip()),
        };
        Rc::new(Self { caller, ..Self::default() })
    }
}

/// The places in which a worker's requests connect, and the lines before them.
#[derive(Debug, Default)]
pub(super) struct Places(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    /// Places that are taken.
    taken: usize,
    /// One a caller; the first has its turn next. None is empty.
    lines: VecDeque<Line>,
    /// How many stand in all lines.
    waiting: usize,
    /// The number of who came last.
    last: u64,
}

#[derive(Debug)]
struct Line {
    caller: Caller,
    /// By the order in which they came.
    waiting: VecDeque<(u64, oneshot::Sender<Place>)>,
}

/// A place. Dropped, it goes to whoever is next.
#[derive(Debug)]
pub(super) struct Place(Weak<RefCell<State>>);

impl Drop for Place {
    fn drop(&mut self) {
        let Some(state) = self.0.upgrade() else { return };
        loop {
            let Some(next) = state.borrow_mut().next() else {
                let mut state = state.borrow_mut();
                state.taken = state.taken.saturating_sub(1);
                return;
            };
            match next.send(Self(self.0.clone())) {
                Ok(()) => return,
                // Gone meanwhile; this one is still to be given.
                Err(place) => place.forget(),
            }
        }
    }
}

impl Place {
    /// Without giving it to anybody.
    fn forget(mut self) {
        self.0 = Weak::new();
    }
}

impl State {
    /// Takes whoever is next out of its line, and lets the other callers have their turn first.
    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        let mut line = self.lines.pop_front()?;
        let next = line.waiting.pop_front();
        if !line.waiting.is_empty() {
            self.lines.push_back(line);
        }
        self.waiting = self.waiting.saturating_sub(1);
        next.map(|(_, place)| place)
    }

    /// Puts somebody at the end of its caller's line.
    fn queue(&mut self, caller: &Caller) -> Option<(u64, oneshot::Receiver<Place>)> {
        let known = self.lines.iter().position(|line| line.caller == *caller);
        let length = known.and_then(|at| self.lines.get(at)).map_or(0, |line| line.waiting.len());
        if self.waiting >= LINE || length >= LINE_EACH {
            return None;
        }
        let (given, place) = oneshot::channel();
        self.last += 1;
        self.waiting += 1;
        match known.and_then(|at| self.lines.get_mut(at)) {
            Some(line) => line.waiting.push_back((self.last, given)),
            None => self.lines.push_back(Line { caller: caller.clone(), waiting: VecDeque::from([(self.last, given)]) }),
        }
        Some((self.last, place))
    }

    /// Takes somebody out of the line.
    fn leave(&mut self, caller: &Caller, number: u64) {
        let Some(at) = self.lines.iter().position(|line| line.caller == *caller) else { return };
        let Some(line) = self.lines.get_mut(at) else { return };
        let Ok(place) = line.waiting.binary_search_by_key(&number, |(number, _)| *number) else { return };
        line.waiting.remove(place);
        if line.waiting.is_empty() {
            self.lines.remove(at);
        }
        self.waiting = self.waiting.saturating_sub(1);
    }
}

/// Somebody in line. Dropped, it leaves.
struct Waits<'a> {
    places: &'a Places,
    caller: &'a Caller,
    number: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.places.0.borrow_mut().leave(self.caller, self.number);
    }
}

/// A turn: a place, and a caller's share of them.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _place: Place,
    _side: Option<SemaphorePermit<'a>>,
}

impl Places {
    /// Waits for a turn at one of `most` places, at most so long; for a caller among others, in the order of its connection and in turn
    /// with other callers.
    ///
    /// # Errors
    /// `overloaded` when the time is up, or too many stand in line.
    pub(super) async fn turn<'a>(
        &self,
        turnstile: Option<&'a Turnstile>,
        most: usize,
        limit: Duration,
    ) -> Result<Turn<'a>, Refusal> {
        let late = || Refusal::new(Reason::Overloaded, "other requests wait for a connection already");
        let turn = async {
            let side = match turnstile {
                Some(turnstile) => Some(turnstile.turns.acquire().await.map_err(|_| late())?),
                None => None,
            };
            let caller = turnstile.map_or(&Caller::Own, |turnstile| &turnstile.caller);
            Ok(Turn { _place: self.place(caller, most).await?, _side: side })
        };
        within(limit, turn).await.unwrap_or_else(|_| Err(late()))
    }

    async fn place(&self, caller: &Caller, most: usize) -> Result<Place, Refusal> {
        let (number, place) = {
            let mut state = self.0.borrow_mut();
            if state.taken < most {
                state.taken += 1;
                return Ok(Place(Rc::downgrade(&self.0)));
            }
            let full = || Refusal::new(Reason::Overloaded, "too many requests wait for a connection already");
            state.queue(caller).ok_or_else(full)?
        };
        let _waits = Waits { places: self, caller, number };
        place.await.map_err(|_| Refusal::new(Reason::Overloaded, "the line was given up"))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, poll};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn turnstile(name: &str) -> Turnstile {
        Turnstile { caller: Caller::Member(name.into()), ..Turnstile::default() }
    }

    #[tokio::test]
    async fn the_next_one_passes_when_one_has_passed() {
        let (places, turnstile) = (Places::default(), turnstile("web"));
        let mut turns = Vec::new();
        for _ in 0..SIDE_BY_SIDE {
            turns.push(places.turn(Some(&turnstile), 1000, LONG).await.unwrap());
        }
        let mut next = std::pin::pin!(places.turn(Some(&turnstile), 1000, LONG));
        assert!(poll!(&mut next).is_pending());
        turns.pop();
        assert!(next.await.is_ok());
    }

    #[tokio::test]
    async fn callers_take_turns_however_long_their_lines_are() {
        let (places, crowd, quiet) = (Places::default(), [turnstile("crowd"), turnstile("crowd")], turnstile("quiet"));
        let first = places.turn(None, 1, LONG).await.unwrap();
        let order = RefCell::new(Vec::new());
        let ask = |turnstile, name| {
            let (places, order) = (&places, &order);
            async move {
                let turn = places.turn(Some(turnstile), 1, LONG).await.unwrap();
                order.borrow_mut().push(name);
                tokio::task::yield_now().await;
                drop(turn);
            }
            .boxed_local()
        };
        let mut asking = vec![];
        for (turnstile, name) in [(&crowd[0], "crowd"), (&crowd[1], "crowd"), (&crowd[0], "crowd"), (&quiet, "quiet")] {
            let mut one = ask(turnstile, name);
            assert!(poll!(&mut one).is_pending());
            asking.push(one);
        }
        drop(first);
        futures_util::future::join_all(asking).await;
        assert_eq!(order.take(), ["crowd", "quiet", "crowd", "crowd"], "on however many connections");
        let state = places.0.borrow();
        assert_eq!((state.taken, state.waiting, state.lines.len()), (0, 0, 0));
    }

    #[tokio::test]
    async fn lines_are_bounded_and_who_leaves_makes_room() {
        let (places, crowd, quiet) = (Places::default(), Caller::Member("crowd".into()), Caller::Stranger([127, 0, 0, 1].into()));
        let held = places.place(&crowd, 1).await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..LINE_EACH {
            let mut one = places.place(&crowd, 1).boxed_local();
            assert!(poll!(&mut one).is_pending());
            waiting.push(one);
        }
        let refused = places.place(&crowd, 1).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::Overloaded);
        let mut other = places.place(&quiet, 1).boxed_local();
        assert!(poll!(&mut other).is_pending(), "half is left to others");
        // One in the middle gives up, and the first never looks again.
        drop(waiting.remove(LINE_EACH / 2));
        let mut again = places.place(&crowd, 1).boxed_local();
        assert!(poll!(&mut again).is_pending());
        drop((waiting, again));
        assert_eq!((places.0.borrow().waiting, places.0.borrow().lines.len()), (1, 1));
        drop(held);
        assert!(other.await.is_ok());
        assert_eq!(places.0.borrow().taken, 0);
    }

    #[tokio::test]
    async fn a_place_that_was_given_to_somebody_who_left_goes_on_to_the_next() {
        let (places, caller) = (Places::default(), Caller::Own);
        let held = places.place(&caller, 1).await.unwrap();
        let mut first = places.place(&caller, 1).boxed_local();
        let mut second = places.place(&caller, 1).boxed_local();
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        drop(held);
        drop(first);
        assert!(second.await.is_ok());
    }
}
