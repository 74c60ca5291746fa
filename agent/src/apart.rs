//! Futures that are compiled apart from those that wait for them.
//!
//! All that a future waits for may become a part of its `poll`, and the way of a request is one future: a compiler that knows which
//! code runs often (`cargo xtask dist`) would make a single function of it, so large that some of its passes, whose time grows with
//! the square of a function, do not end within a quarter of an hour.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

pin_project! {
    /// A future whose `poll` is a function of its own.
    #[derive(Debug)]
    pub(crate) struct Apart<F> {
        #[pin]
        future: F,
    }
}

/// The same future, compiled apart from whoever waits for it.
pub(crate) fn apart<F: Future>(future: F) -> Apart<F> {
    Apart { future }
}

impl<F: Future> Future for Apart<F> {
    type Output = F::Output;

    #[inline(never)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}
