//! The streams of a connection, run by the connection's own task. Each has a room, which serves one stream after another: a task
//! of the runtime for each would cost several allocations and a place in its queues for every request.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use crate::turn::{Pause, TURN};

/// Rooms that are always kept.
const KEPT: usize = 1;

/// Jobs that one task does side by side.
pub(super) struct Running<T, B, F> {
    /// Furnishes a room: returns what takes jobs out of its inbox for ever.
    furnish: B,
    rooms: Vec<Room<T, F>>,
    free: Vec<usize>,
    /// Most that were taken at a time lately.
    most: usize,
    woken: Arc<Woken>,
    /// Whoever has its turn; kept for its capacity.
    turn: Vec<usize>,
    pause: Pause,
}

struct Room<T, F> {
    future: Pin<Box<F>>,
    inbox: Inbox<T>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// Where a room finds its next job.
pub(super) struct Inbox<T>(Rc<Post<T>>);

struct Post<T> {
    job: Cell<Option<T>>,
    /// Nothing is done in the room.
    idle: Cell<bool>,
}

impl<T> Inbox<T> {
    /// The next job.
    pub(super) async fn next(&self) -> T {
        std::future::poll_fn(|_| {
            let job = self.0.job.take();
            self.0.idle.set(job.is_none());
            // Who brings a job rings.
            job.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Wakes one room.
#[derive(Debug)]
struct Bell {
    room: usize,
    /// It waits for its turn already.
    rung: AtomicBool,
    woken: Arc<Woken>,
}

/// Who was woken, and the task that runs them. Wakers may be used on any thread, so there is a lock, which nobody else holds.
#[derive(Debug, Default)]
struct Woken(Mutex<Turns>);

#[derive(Debug, Default)]
struct Turns {
    rooms: Vec<usize>,
    task: Option<Waker>,
}

impl Woken {
    fn turns(&self) -> MutexGuard<'_, Turns> {
        // Nothing in here can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bell {
    /// Puts the room among those that were woken, unless it is there already; then there is nobody to wake either.
    fn ring(&self) -> Option<MutexGuard<'_, Turns>> {
        if self.rung.swap(true, Ordering::AcqRel) {
            return None;
        }
        let mut turns = self.woken.turns();
        turns.rooms.push(self.room);
        Some(turns)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(turns) = self.ring() {
            turns.task.iter().for_each(Waker::wake_by_ref);
        }
    }
}

impl<T, B: FnMut(Inbox<T>) -> F, F: Future<Output = ()>> Running<T, B, F> {
    /// Nobody yet.
    pub(super) fn new(furnish: B) -> Self {
        Self {
            furnish,
            rooms: Vec::new(),
            free: Vec::new(),
            most: 0,
            woken: Arc::default(),
            turn: Vec::new(),
            pause: Pause::default(),
        }
    }

    /// Takes a job, which is begun at the next [`Running::run`].
    pub(super) fn start(&mut self, job: T) {
        let at = self.free.pop().unwrap_or_else(|| {
            let room = self.rooms.len();
            let post = Rc::new(Post { job: Cell::new(None), idle: Cell::new(true) });
            let bell = Arc::new(Bell { room, rung: AtomicBool::new(false), woken: self.woken.clone() });
            let future = Box::pin((self.furnish)(Inbox(post.clone())));
            self.rooms.push(Room { future, inbox: Inbox(post), waker: bell.clone().into(), bell });
            room
        });
        if let Some(Room { inbox: Inbox(post), bell, .. }) = self.rooms.get(at) {
            post.job.set(Some(job));
            post.idle.set(false);
            // The task is at work: it will run it.
            drop(bell.ring());
        }
        self.most = self.most.max(self.rooms.len() - self.free.len());
    }

    /// Whether nothing is left to do.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.rooms.len()
    }

    /// Gives each that was woken one turn, some of them after a pause. Whoever is woken meanwhile wakes the task again.
    pub(super) fn run(&mut self, cx: &mut Context<'_>) {
        {
            let turns = &mut *self.woken.turns();
            if turns.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
                turns.task = Some(cx.waker().clone());
            }
            // Also in a pause: whoever was woken has used up its wake, and must be there when the pause is over.
            if self.turn.is_empty() {
                std::mem::swap(&mut self.turn, &mut turns.rooms);
            } else {
                self.turn.append(&mut turns.rooms);
            }
        }
        if self.turn.is_empty() || self.pause.lasts(cx) {
            return;
        }
        let waiting = self.turn.split_off(self.turn.len().min(TURN));
        for at in self.turn.drain(..) {
            let Some(Room { future, inbox: Inbox(post), bell, waker }) = self.rooms.get_mut(at) else { continue };
            // Before its turn: what happens during it must be noticed.
            bell.rung.store(false, Ordering::Release);
            if post.idle.get() {
                continue;
            }
            let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(waker))));
            if polled.is_err() {
                // Its job ends with it, and the panic hook has said why. The others have nothing to do with it.
                *future = Box::pin((self.furnish)(Inbox(post.clone())));
                post.idle.set(true);
            }
            if post.idle.get() {
                self.free.push(at);
            }
        }
        if !waiting.is_empty() {
            self.turn = waiting;
            // Sockets and other tasks first: it is what most of these wait for.
            self.pause.begin(cx);
        }
    }

    /// Whether there are rooms to be given back when they are not needed for a while.
    pub(super) fn is_roomy(&self) -> bool {
        self.rooms.len() > KEPT
    }

    /// Gives back the rooms that were not needed since this was last done. Rooms in the middle stay as long as one behind them
    /// is taken.
    pub(super) fn tidy(&mut self) {
        let needed = self.most.max(KEPT);
        // A late bell of a room that is no more rings for nobody, or for its successor, which looks and finds nothing.
        while self.rooms.len() > needed && self.rooms.pop_if(|room| room.inbox.0.idle.get()).is_some() {}
        let left = self.rooms.len();
        self.free.retain(|at| *at < left);
        self.most = left - self.free.len();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::{Receiver, channel};

    use super::*;

    /// Counts jobs that have ended.
    async fn count(inbox: Inbox<Receiver<()>>, ended: Rc<Cell<usize>>) {
        loop {
            let _ = inbox.next().await.await;
            ended.set(ended.get() + 1);
        }
    }

    #[tokio::test]
    async fn each_job_ends_by_itself_and_rooms_are_used_again() {
        let ended = Rc::new(Cell::new(0));
        let mut running = Running::new(|inbox| count(inbox, ended.clone()));
        for round in 0..3 {
            let mut ends = Vec::new();
            for _ in 0..5 {
                let (end, wait) = channel::<()>();
                running.start(wait);
                ends.push(end);
            }
            assert!(!running.is_empty() && running.rooms.len() <= 5);
            // In another order than they began.
            for (at, end) in ends.into_iter().rev().enumerate() {
                let before = ended.get();
                assert_eq!(before, round * 5 + at);
                let _ = end.send(());
                std::future::poll_fn(|cx| {
                    running.run(cx);
                    if ended.get() > before { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
            assert!(running.is_empty() && running.rooms.len() == 5, "kept for those who come");
        }
        running.tidy();
        assert_eq!(running.rooms.len(), 5, "they were needed a moment ago");
        let (end, wait) = channel::<()>();
        running.start(wait);
        running.run(&mut Context::from_waker(Waker::noop()));
        running.tidy();
        assert!(!running.rooms.is_empty() && !running.is_empty(), "one is taken");
        drop(end);
        running.run(&mut Context::from_waker(Waker::noop()));
        assert!(running.is_empty());
        running.tidy();
        running.tidy();
        assert_eq!((running.rooms.len(), running.free.len()), (KEPT, KEPT));
    }

    #[tokio::test]
    async fn a_job_that_panics_ends_alone_and_its_room_is_used_again() {
        let ended = Rc::new(Cell::new(0));
        let mut running = Running::new(|inbox: Inbox<Receiver<bool>>| {
            let ended = ended.clone();
            async move {
                loop {
                    let job = inbox.next().await;
                    let kept = ended.clone();
                    assert!(job.await.is_ok_and(|is_good| is_good), "a fault, for this test");
                    kept.set(kept.get() + 1);
                }
            }
        });
        let mut cx = Context::from_waker(Waker::noop());
        for round in 1..=2 {
            let ((bad, waits), (good, goes_on)) = (channel(), channel());
            running.start(waits);
            running.start(goes_on);
            running.run(&mut cx);
            bad.send(false).unwrap();
            running.run(&mut cx);
            assert_eq!((running.rooms.len(), running.free.len()), (2, 1), "round {round}");
            good.send(true).unwrap();
            running.run(&mut cx);
            assert!(running.is_empty() && ended.get() == round);
        }
        assert_eq!(Rc::strong_count(&ended), 3, "what the job held was dropped");
    }

    #[tokio::test]
    async fn who_wakes_itself_has_another_turn_and_nobody_a_turn_unasked() {
        let turns = Rc::new(Cell::new(0));
        let mut running = Running::new(|inbox: Inbox<()>| {
            let counted = turns.clone();
            async move {
                inbox.next().await;
                std::future::poll_fn(move |cx| {
                    counted.set(counted.get() + 1);
                    if counted.get() < 3 {
                        cx.waker().wake_by_ref();
                    }
                    Poll::<()>::Pending
                })
                .await;
            }
        });
        running.start(());
        std::future::poll_fn(|cx| {
            running.run(cx);
            if turns.get() == 3 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let mut cx = Context::from_waker(Waker::noop());
        (0..3).for_each(|_| running.run(&mut cx));
        assert_eq!(turns.get(), 3);
    }

    #[tokio::test]
    async fn a_crowd_lets_sockets_have_their_turn() {
        let begun = Rc::new(Cell::new(0));
        let mut running = Running::new(|inbox: Inbox<()>| {
            let begun = begun.clone();
            async move {
                loop {
                    inbox.next().await;
                    begun.set(begun.get() + 1);
                }
            }
        });
        (0..3 * TURN + 1).for_each(|_| running.start(()));
        let mut seen = Vec::new();
        std::future::poll_fn(|cx| {
            running.run(cx);
            seen.push(begun.get());
            if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert_eq!(seen, [TURN, 2 * TURN, 3 * TURN, 3 * TURN + 1]);
    }

    #[tokio::test]
    async fn whoever_is_woken_in_a_pause_has_its_turn_after_it() {
        let ended = Rc::new(Cell::new(0));
        let mut running = Running::new(|inbox| count(inbox, ended.clone()));
        let (late, waits) = channel();
        running.start(waits);
        running.run(&mut Context::from_waker(Waker::noop()));
        let crowd: Vec<_> = (0..TURN + 4).map(|_| channel::<()>()).collect();
        let (_held, waits): (Vec<_>, Vec<_>) = crowd.into_iter().unzip();
        waits.into_iter().for_each(|waits| running.start(waits));
        let (mut late, mut begun) = (Some(late), None);
        let all = std::future::poll_fn(|cx| {
            running.run(cx);
            if let Some(late) = late.take() {
                // In the pause: one that waited, and one that is new.
                let _ = late.send(());
                let (end, waits) = channel();
                running.start(waits);
                let _ = end.send(());
                running.run(cx);
                begun = Some(ended.get());
            }
            if ended.get() == 2 { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::time::timeout(std::time::Duration::from_secs(5), all).await.expect("nobody is forgotten");
        assert_eq!(begun, Some(0), "there was no pause");
    }
}
