//! Bounds on what one worker has under way at a service: past them calls are refused at once, rather than queued. Only who needs a new
//! connection waits in line.

use std::{cell::Cell, rc::Rc};

use crate::refusal::{Reason, Refusal};

/// Requests whose connections are being made.
pub(super) const CONNECTING: usize = 256;

/// Most of everything, for each worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Requests under way at one port of a service.
    pub requests: usize,
    /// Requests under way at one endpoint.
    pub endpoint_requests: usize,
    /// Requests whose connections are being made; others wait in line.
    pub connecting: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { requests: 4096, endpoint_requests: 1024, connecting: CONNECTING }
    }
}

/// Counts what is under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Gauge(Rc<Cell<usize>>);

/// One that is under way. Dropped, it is over.
#[derive(Debug)]
pub(super) struct Held(Rc<Cell<usize>>);

impl Gauge {
    /// Begins one more, unless there are `most` already.
    ///
    /// # Errors
    /// `overloaded`.
    pub(super) fn begin(&self, most: usize, what: &str) -> Result<Held, Refusal> {
        if self.0.get() >= most {
            return Err(Refusal::new(Reason::Overloaded, format!("{most} {what} already")));
        }
        self.0.set(self.0.get() + 1);
        Ok(Held(self.0.clone()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_makes_room() {
        let gauge = Gauge::default();
        let (one, two) = (gauge.begin(2, "calls"), gauge.begin(2, "calls"));
        assert_eq!(gauge.begin(2, "calls").unwrap_err().reason(), Reason::Overloaded);
        drop(one);
        assert!(gauge.begin(2, "calls").is_ok());
        drop(two);
    }
}
