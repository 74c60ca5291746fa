//! Deadlines to within a tick, for what happens with every request: a timer of the runtime costs more than everything else that
//! waiting does. A worker's loop ticks; a thread without such a loop must not use this.

use std::{
    cell::RefCell,
    ops::ControlFlow,
    pin::pin,
    task::{Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

/// How often a worker ticks.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// Ticks in a second.
const TICKS: u64 = 10;
const _: () = assert!(TICK.as_nanos() * TICKS as u128 == Duration::from_secs(1).as_nanos());

thread_local! {
    static ALARMS: RefCell<Alarms> = const { RefCell::new(Alarms { now: 0, rings: 0, instant: None, places: Vec::new(), free: Vec::new() }) };
}

#[derive(Debug)]
struct Alarms {
    /// Ticks so far.
    now: u64,
    /// How often everybody was woken.
    rings: u64,
    /// The time at the last tick.
    instant: Option<Instant>,
    places: Vec<Option<(u64, Waker)>>,
    free: Vec<usize>,
}

/// The time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Late;

/// Somebody who waits. Dropped, it waits no more.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<usize>);

/// Ticks until now.
fn now() -> u64 {
    ALARMS.with_borrow(|alarms| alarms.now)
}

/// The time to within a tick, without asking the system.
pub(crate) fn instant() -> Instant {
    ALARMS.with_borrow(|alarms| alarms.instant).unwrap_or_else(Instant::now)
}

/// The tick at which `limit` from now is surely over.
fn after(limit: Duration) -> u64 {
    // In 64 bits: this is asked several times a request.
    let ticks =
        limit.as_secs().saturating_mul(TICKS).saturating_add(u64::from(limit.subsec_nanos().div_ceil(TICK.subsec_nanos())));
    now().saturating_add(ticks).saturating_add(1)
}

/// One tick: whoever's time is up is woken.
pub(crate) fn tick() {
    ALARMS.with_borrow_mut(|alarms| {
        alarms.now += 1;
        alarms.instant = Some(Instant::now());
    });
    let now = now();
    wake(|due| due <= now);
}

/// Wakes everybody who waits, to look again: drain has begun, a policy has changed.
pub(crate) fn ring() {
    ALARMS.with_borrow_mut(|alarms| alarms.rings += 1);
    wake(|_| true);
}

fn wake(is_due: impl Fn(u64) -> bool) {
    let due: Vec<Waker> = ALARMS.with_borrow(|alarms| {
        alarms.places.iter().flatten().filter(|(due, _)| is_due(*due)).map(|(_, waker)| waker.clone()).collect()
    });
    due.into_iter().for_each(Waker::wake);
}

impl Alarm {
    /// Has `waker` woken at this tick.
    fn set(&mut self, due: u64, waker: &Waker) {
        ALARMS.with_borrow_mut(|alarms| {
            let place = *self.0.get_or_insert_with(|| {
                alarms.free.pop().unwrap_or_else(|| {
                    alarms.places.push(None);
                    alarms.places.len() - 1
                })
            });
            if let Some(place) = alarms.places.get_mut(place) {
                match place {
                    Some((known, same)) if same.will_wake(waker) => *known = due,
                    place => *place = Some((due, waker.clone())),
                }
            }
        });
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let Some(at) = self.0.take() else { return };
        // At the end of a thread there may be nothing to give back to.
        let _ = ALARMS.try_with(|alarms| {
            let mut alarms = alarms.borrow_mut();
            if let Some(place) = alarms.places.get_mut(at) {
                *place = None;
            }
            alarms.free.push(at);
        });
    }
}

/// Waits for `future`, at most `limit` and a tick or two.
///
/// # Errors
/// When the time is up.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, Late> {
    let mut future = pin!(future);
    let (mut alarm, mut due) = (Alarm::default(), None);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let due = *due.get_or_insert_with(|| after(limit));
        if now() >= due {
            return Poll::Ready(Err(Late));
        }
        alarm.set(due, cx.waker());
        Poll::Pending
    })
    .await
}

/// Waits for `future` for as long as `taken` grows by a `step` within each `limit`: who goes on, however slowly, is waited for, and
/// who takes a little now and then is not.
///
/// # Errors
/// When the time is up.
pub(crate) async fn in_steps<F: Future>(
    limit: Duration,
    step: usize,
    taken: impl Fn() -> usize,
    future: F,
) -> Result<F::Output, Late> {
    let mut future = pin!(future);
    let (mut alarm, mut due, mut mark) = (Alarm::default(), None, 0);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let taken = taken();
        let due = match due {
            Some(due) if taken.wrapping_sub(mark) < step => due,
            _ => {
                mark = taken;
                *due.insert(after(limit))
            }
        };
        if now() >= due {
            return Poll::Ready(Err(Late));
        }
        alarm.set(due, cx.waker());
        Poll::Pending
    })
    .await
}

/// Waits until this time, to within a tick or two.
pub(crate) async fn at(end: Instant) {
    until(|| if instant() >= end { ControlFlow::Break(()) } else { ControlFlow::Continue(end) }).await;
}

/// Waits until `holds` breaks with something. It is asked at first, whenever everybody is woken (`ring`), and at the latest at the
/// time that it said.
pub(crate) async fn until<T>(mut holds: impl FnMut() -> ControlFlow<T, Instant>) -> T {
    let (mut alarm, mut due, mut heard) = (Alarm::default(), 0, 0);
    std::future::poll_fn(|cx| {
        let (now, rings) = ALARMS.with_borrow(|alarms| (alarms.now, alarms.rings));
        // In between nothing can have changed.
        if due <= now || heard != rings {
            heard = rings;
            due = match holds() {
                ControlFlow::Break(output) => return Poll::Ready(output),
                ControlFlow::Continue(deadline) => after(deadline.saturating_duration_since(instant())),
            };
        }
        alarm.set(due, cx.waker());
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_comes_in_time_is_passed_on_and_what_does_not_is_late() {
        assert_eq!(within(Duration::from_secs(1), async { 7 }).await, Ok(7));
        let late = within(Duration::from_millis(250), std::future::pending::<()>());
        let mut late = pin!(late);
        let mut ticks = 0;
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut late => break ended,
                () = tokio::time::sleep(TICK) => {
                    ticks += 1;
                    tick();
                }
            }
        };
        assert!(ended == Err(Late) && (3..=5).contains(&ticks), "{ticks}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_step_in_each_span_is_waited_for_and_who_takes_less_is_not() {
        let lasts = async |each: usize| {
            let taken = Cell::new(0);
            let mut waiting = pin!(in_steps(Duration::from_secs(1), 100, || taken.get(), std::future::pending::<()>()));
            for ticks in 0..100 {
                if futures_util::poll!(&mut waiting).is_ready() {
                    return ticks;
                }
                taken.set(taken.get() + each);
                tick();
            }
            100
        };
        assert_eq!(lasts(11).await, 100, "110 a second");
        let (little, nothing) = (lasts(7).await, lasts(0).await);
        assert!((10..=12).contains(&little) && (10..=12).contains(&nothing), "{little} {nothing}");
    }

    #[tokio::test]
    async fn whoever_waits_looks_again_when_everybody_is_woken() {
        let flag = Cell::new(false);
        let later = Instant::now() + Duration::from_secs(3600);
        let waiting = until(|| if flag.get() { ControlFlow::Break("seen") } else { ControlFlow::Continue(later) });
        let mut waiting = pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        flag.set(true);
        ring();
        assert_eq!(waiting.await, "seen");
    }
}
