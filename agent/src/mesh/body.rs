//! Bodies that arrive on a stream.

use std::{rc::Rc, task::Poll};

use super::{
    link::Place,
    pump::Pump,
    stream::{Piece, Waiter},
};
use crate::{
    http::{
        Meter,
        message::{BodyError, Frame},
    },
    upstream::StreamLease,
};

/// A body that is read from a stream.
#[derive(Debug)]
pub struct BodyReader {
    place: Rc<Place>,
    length: Option<u64>,
    _upstream: Option<Upstream>,
    /// Bounds a request's body.
    meter: Option<Meter>,
}

/// What a response's body keeps until it has ended.
#[derive(Debug)]
pub(super) struct Upstream {
    /// The stream's place at the endpoint.
    pub(super) _lease: StreamLease,
    /// Sends what is left of the request's body.
    pub(super) _pump: Option<Pump>,
}

impl BodyReader {
    pub(super) fn new(place: Rc<Place>, length: Option<u64>, upstream: Option<Upstream>) -> Self {
        Self { place, length, _upstream: upstream, meter: None }
    }

    /// The same, bounded.
    pub(super) fn metered(self, meter: Meter) -> Self {
        Self { meter: Some(meter), ..self }
    }

    /// Length if the head named it.
    pub fn length(&self) -> Option<u64> {
        self.length.or_else(|| self.is_end().then_some(0))
    }

    /// Whether nothing is left to read.
    pub fn is_end(&self) -> bool {
        self.place.stream.state.borrow().is_exhausted()
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// When the stream is reset or the connection ends.
    pub async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        let frame = std::future::poll_fn(|cx| match self.place.take(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(Piece::Data(data))) => Poll::Ready(Ok(Some(Frame::Data(data)))),
            Poll::Ready(Ok(Piece::Trailers(fields))) => Poll::Ready(Ok(Some(Frame::Trailers(fields)))),
            Poll::Ready(Ok(Piece::End)) => Poll::Ready(Ok(None)),
            Poll::Ready(Err(code)) => Poll::Ready(Err(BodyError::Broken(format!("the stream was given up: {}", code.as_str())))),
        })
        .await?;
        if let (Some(Frame::Data(data)), Some(meter)) = (&frame, &mut self.meter) {
            meter.take(data.len())?;
        }
        Ok(frame)
    }
}

impl Place {
    /// Takes the next piece, and allows the peer more when that is due.
    pub(super) fn take(&self, cx: &std::task::Context<'_>) -> Poll<Result<Piece, super::frame::Code>> {
        let mut state = self.stream.state.borrow_mut();
        // A stream that ended whole may be read to its end, whatever became of it afterwards.
        let whole = state.is_receiving();
        if let Some(code) = state.over().filter(|_| whole) {
            return Poll::Ready(Err(code));
        }
        let Some(piece) = state.take() else {
            state.wait(Waiter::Reader, cx.waker());
            return Poll::Pending;
        };
        let grant = state.grant();
        drop(state);
        if let Piece::Data(data) = &piece {
            let mut link = self.link.state.borrow_mut();
            link.taken(data.len() as u32);
            if let Some(grant) = grant {
                link.put(self.stream.id, super::frame::Kind::Window, false, &grant.to_be_bytes());
            }
        }
        Poll::Ready(Ok(piece))
    }
}
