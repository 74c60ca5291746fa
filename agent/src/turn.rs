//! Turns. A worker does one thing at a time: who has much to do does some of it, and lets sockets and other tasks go first.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake, Waker},
};

/// Streams of one connection that are begun or run in a turn.
pub(crate) const TURN: usize = 16;

/// Has the task polled again when sockets have been looked at and other tasks had their turn. It may be polled earlier, when it is
/// woken by anything else: see [`Pause`].
pub(crate) fn wake_after_others(cx: &mut Context<'_>) {
    // It is woken by being polled once.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

/// A pause that lasts until sockets have been looked at and other tasks had their turn, whoever wakes the task meanwhile. A task with
/// much to do nearly always wakes itself by what it does, and would go on sixty times before the runtime looks at sockets.
#[derive(Debug, Default)]
pub(crate) struct Pause(Option<Arc<Over>>);

#[derive(Debug)]
struct Over {
    is_over: AtomicBool,
    task: Waker,
}

impl Wake for Over {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_over.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl Pause {
    /// Begins one, after which the task is woken.
    pub(crate) fn begin(&mut self, cx: &Context<'_>) {
        let over = Arc::new(Over { is_over: AtomicBool::new(false), task: cx.waker().clone() });
        wake_after_others(&mut Context::from_waker(&over.clone().into()));
        self.0 = Some(over);
    }

    /// Whether there is one, which is not over. Then the task is woken when it is.
    pub(crate) fn lasts(&mut self, cx: &Context<'_>) -> bool {
        let Some(over) = &self.0 else { return false };
        if over.is_over.load(Ordering::Acquire) {
            self.0 = None;
            return false;
        }
        if !over.task.will_wake(cx.waker()) {
            // Another task goes on with it.
            self.begin(cx);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc, task::Poll};

    use tokio::{net::UdpSocket, task::LocalSet};

    use super::*;

    #[tokio::test]
    async fn who_pauses_goes_on_after_sockets_however_often_it_is_woken() {
        let (near, far) = (std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        near.connect(far.local_addr().unwrap()).unwrap();
        let arrived = Rc::new(Cell::new(0));
        let heard = arrived.clone();
        let local = LocalSet::new();
        local.spawn_local(async move {
            while far.recv(&mut [0; 8]).await.is_ok() {
                heard.set(heard.get() + 1);
            }
        });
        let (mut pause, mut sent, mut polls) = (Pause::default(), 0, 0);
        let turns = std::future::poll_fn(move |cx| {
            polls += 1;
            // As a task does that answers itself.
            cx.waker().wake_by_ref();
            if pause.lasts(cx) {
                return Poll::Pending;
            }
            // The task may have been in line already when what came in the last pause woke its own.
            assert!(arrived.get() + 1 >= sent, "{} of {sent} arrived", arrived.get());
            if sent == 5 {
                return Poll::Ready(polls);
            }
            near.send(b"turn").unwrap();
            sent += 1;
            pause.begin(cx);
            assert!(pause.lasts(cx));
            Poll::Pending
        });
        let turns = local.spawn_local(turns);
        assert!(local.run_until(turns).await.unwrap() > 6, "it was never woken by itself");
    }

    #[tokio::test]
    async fn a_pause_ends_for_whoever_waits_for_it() {
        let mut pause = Pause::default();
        // Begun by a task that is no more.
        pause.begin(&Context::from_waker(Waker::noop()));
        let over = std::future::poll_fn(|cx| if pause.lasts(cx) { Poll::Pending } else { Poll::Ready(()) });
        tokio::time::timeout(std::time::Duration::from_secs(10), over).await.unwrap();
        assert!(!pause.lasts(&Context::from_waker(Waker::noop())));
    }
}
