//! Buffers that a worker keeps for whoever writes next: idle connections hold none, and busy ones need not grow theirs anew.

use std::{cell::RefCell, thread::LocalKey};

/// Buffers kept of each kind.
const MOST: usize = 64;
/// A larger buffer is not kept.
const LARGEST: usize = 64 << 10;
/// The same for the fields of a message.
const LARGEST_FIELDS: usize = 1 << 10;

type Shelf = LocalKey<RefCell<Vec<Vec<u8>>>>;

thread_local! {
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static FIELDS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub(crate) fn take() -> Vec<u8> {
    taken(&SPARES)
}

/// Gives a buffer back, whatever is in it.
pub(crate) fn give(buffer: Vec<u8>) {
    given(&SPARES, buffer, LARGEST);
}

/// An empty buffer with room for the fields of a message.
pub(crate) fn take_fields(bytes: usize) -> Vec<u8> {
    let mut buffer = taken(&FIELDS);
    buffer.reserve_exact(bytes);
    buffer
}

/// Gives the buffer of a message's fields back, whatever is in it.
pub(crate) fn give_fields(buffer: Vec<u8>) {
    given(&FIELDS, buffer, LARGEST_FIELDS);
}

// At the end of a thread there may be nothing to take from or to give to.

fn taken(shelf: &'static Shelf) -> Vec<u8> {
    shelf.try_with(|spares| spares.borrow_mut().pop()).ok().flatten().unwrap_or_default()
}

fn given(shelf: &'static Shelf, mut buffer: Vec<u8>, largest: usize) {
    if !(1..=largest).contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
    let _ = shelf.try_with(|spares| {
        let mut spares = spares.borrow_mut();
        if spares.len() < MOST {
            spares.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_comes_empty_and_nothing_huge_is_kept() {
        give(b"secret".to_vec());
        let buffer = take();
        assert!(buffer.is_empty() && buffer.capacity() >= 6);
        give(Vec::with_capacity(LARGEST + 1));
        assert_eq!(take().capacity(), 0);
        (0..2 * MOST).for_each(|_| give(Vec::with_capacity(8)));
        assert_eq!((0..2 * MOST).filter(|_| take().capacity() > 0).count(), MOST);
        give_fields(Vec::with_capacity(LARGEST_FIELDS + 1));
        give_fields(Vec::with_capacity(100));
        let buffers = [take_fields(200), take_fields(0)];
        assert!((200..=LARGEST_FIELDS).contains(&buffers[0].capacity()) && buffers[1].capacity() == 0);
    }
}
