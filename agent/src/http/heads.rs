//! The heads of the requests under way on one connection: how many bytes of them are held together. Each may be large, there may be many
//! of them, and they are held until their requests are over.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// What a field takes beside its name and value, as HPACK reckons (RFC 7541 section 4.1).
pub(super) const FIELD: usize = 32;

/// What is left of the bytes that one connection's heads may take. Clones are of the same connection.
#[derive(Clone, Debug)]
pub(crate) struct Heads(Rc<Room>);

#[derive(Debug)]
struct Room {
    most: usize,
    held: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

/// A head that is held. Dropped, there is room again.
#[derive(Debug)]
pub(crate) struct HeldHead {
    room: Rc<Room>,
    bytes: usize,
}

impl Heads {
    /// Room for so many bytes.
    pub(crate) fn new(most: usize) -> Self {
        Self(Rc::new(Room { most, held: Cell::new(0), waiting: RefCell::default() }))
    }

    /// Holds a head of so many bytes, if there is room. There always is for one.
    pub(crate) fn hold(&self, bytes: usize) -> Option<HeldHead> {
        let room = &self.0;
        let held = room.held.get().saturating_add(bytes);
        if held > room.most && room.held.get() > 0 {
            return None;
        }
        room.held.set(held);
        Some(HeldHead { room: room.clone(), bytes })
    }

    /// Waits until there is room.
    pub(crate) fn poll_hold(&self, cx: &mut Context<'_>, bytes: usize) -> Poll<HeldHead> {
        if let Some(head) = self.hold(bytes) {
            return Poll::Ready(head);
        }
        let mut waiting = self.0.waiting.borrow_mut();
        if !waiting.iter().any(|known| known.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for HeldHead {
    fn drop(&mut self) {
        self.room.held.set(self.room.held.get().saturating_sub(self.bytes));
        // Whoever waits looks again, in order.
        self.room.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn heads_are_held_up_to_their_bound_and_one_always_is() {
        let heads = Heads::new(100);
        let large = heads.hold(1000);
        assert!(large.is_some() && heads.hold(1).is_none());
        drop(large);
        let (first, second) = (heads.hold(60), heads.hold(40));
        assert!(first.is_some() && second.is_some() && heads.hold(1).is_none());
        let mut next = std::pin::pin!(std::future::poll_fn(|cx| heads.poll_hold(cx, 60)));
        assert!(poll!(&mut next).is_pending());
        drop(second);
        assert!(poll!(&mut next).is_pending(), "too little room");
        drop(first);
        assert_eq!(next.await.bytes, 60);
        assert!(heads.hold(100).is_some(), "all of it was given back");
    }
}
