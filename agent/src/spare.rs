//! Buffers that a worker keeps for whoever writes next: idle connections hold none, and busy ones need not grow theirs anew.

use std::cell::RefCell;

/// Buffers kept.
const MOST: usize = 64;
/// A larger buffer is not kept.
const LARGEST: usize = 64 << 10;

thread_local! {
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub(crate) fn take() -> Vec<u8> {
    SPARES.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Gives a buffer back, whatever is in it.
pub(crate) fn give(mut buffer: Vec<u8>) {
    if !(1..=LARGEST).contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
    SPARES.with_borrow_mut(|spares| {
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
    }
}
