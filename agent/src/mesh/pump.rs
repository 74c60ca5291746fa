//! Bodies that are sent on a stream.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::{
    frame::Code,
    link::{Gone, Place},
    stream::Waiter,
};
use crate::{
    alarm::in_steps,
    http::{Again, Body, BodyError, Frame, TAKEN},
    refusal::{Reason, Refusal},
};

/// Most bytes of a request's body that are kept until the other agent answers.
const KEPT: usize = 64 << 10;
/// Most pieces of it: each may hold a larger buffer in memory.
const KEPT_PIECES: usize = 16;

/// Sends a request's body. Dropped, it stops.
#[derive(Debug)]
pub(super) struct Pump {
    /// `None` once all of it is sent.
    pub(super) task: Option<JoinHandle<Option<Refusal>>>,
    kept: Rc<RefCell<Kept>>,
}

/// What was sent of a body, for as long as the other agent may turn out not to have begun with the request.
#[derive(Debug, Default)]
struct Kept {
    pieces: Vec<Frame>,
    bytes: usize,
    /// It was too much, or an answer has begun: the body can't be sent again.
    lost: bool,
    /// What is left, once the pump has stopped, and how long all of it is.
    rest: Option<(Body, Option<u64>)>,
}

impl Kept {
    fn keep(&mut self, frame: &Frame) {
        if let Frame::Data(data) = frame {
            self.bytes += data.len();
        }
        if self.lost || self.bytes > KEPT || self.pieces.len() == KEPT_PIECES {
            return self.lose();
        }
        self.pieces.push(frame.clone());
    }

    fn lose(&mut self) {
        self.lost = true;
        self.pieces = Vec::new();
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
    }
}

impl Place {
    /// Sends a piece of a body, or its end.
    pub(super) async fn send(&self, mut data: Bytes, end: bool) -> Result<(), Gone> {
        std::future::poll_fn(|cx| self.link.poll_data(cx, &self.stream, &mut data, end)).await
    }

    /// Ends this side.
    pub(super) async fn finish(&self) -> Result<(), Gone> {
        self.send(Bytes::new(), true).await
    }

    /// Ends when the stream is given up, by either side.
    pub(super) async fn given_up(&self) -> Code {
        std::future::poll_fn(|cx| {
            let mut state = self.stream.state.borrow_mut();
            if let Some(code) = state.over() {
                return Poll::Ready(code);
            }
            state.wait(Waiter::Watcher, cx.waker());
            Poll::Pending
        })
        .await
    }
}

/// Why a body was not sent whole.
#[derive(Debug)]
pub(super) enum Unsent {
    /// It broke off, or stopped arriving.
    Source(Reason, String),
    /// Its sender may not go on.
    Bounded(Refusal),
    /// The other side does not take it.
    Sink(Code),
}

impl Pump {
    /// Begins. What is there already is sent at once; the rest is sent by a task.
    ///
    /// # Errors
    /// When the body may not go on.
    pub(super) async fn start(place: Rc<Place>, mut body: Body, stall: Duration) -> Result<Self, Refusal> {
        let kept = Rc::<RefCell<Kept>>::default();
        let keeper = kept.clone();
        let mut work = Box::pin(async move {
            let length = body.length();
            let copied = tokio::select! {
                biased;
                copied = copy(&place, &mut body, stall, |frame| keeper.borrow_mut().keep(frame)) => copied,
                // The caller may be silent for long, and the body be wanted elsewhere.
                code = place.given_up() => Err(Unsent::Sink(code)),
            };
            match copied {
                Err(Unsent::Bounded(refusal)) => return Some(refusal),
                Err(Unsent::Source(_, reason)) => {
                    tracing::debug!(reason, "a request's body ended early");
                    place.fail(Code::Broken);
                }
                Ok(()) | Err(Unsent::Sink(_)) => {
                    let mut kept = keeper.borrow_mut();
                    if !kept.lost {
                        kept.rest = Some((body, length));
                    }
                }
            }
            None
        });
        // Most bodies are small and come with their head: they need no task.
        let task = match std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
            Poll::Ready(Some(refusal)) => return Err(refusal),
            Poll::Ready(None) => None,
            Poll::Pending => Some(tokio::task::spawn_local(work)),
        };
        Ok(Self { task, kept })
    }

    /// All of it is sent, or will never be.
    pub(super) fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// An answer has begun: nothing is sent again.
    pub(super) fn answered(&self) {
        let mut kept = self.kept.borrow_mut();
        kept.lose();
        kept.rest = None;
    }

    /// The whole body of a stream that was given up, if little enough of it was sent.
    pub(super) async fn take_back(mut self) -> Option<Body> {
        if let Some(task) = self.task.as_mut().filter(|task| !task.is_finished()) {
            let _ = task.await;
        }
        let mut kept = self.kept.borrow_mut();
        let (rest, length) = kept.rest.take()?;
        let pieces = std::mem::take(&mut kept.pieces).into();
        Some(Body::Again(Box::new(Again { pieces, rest, length })))
    }
}

/// Sends all of a body; `sending` hears of every piece before it is sent.
pub(super) async fn copy(place: &Place, body: &mut Body, stall: Duration, mut sending: impl FnMut(&Frame)) -> Result<(), Unsent> {
    loop {
        let frame = body.frame().await.map_err(|error| match error {
            BodyError::TooLarge | BodyError::TooSlow(_) => Unsent::Bounded(error.refusal()),
            BodyError::Malformed(_) | BodyError::Broken(_) => Unsent::Source(Reason::UpstreamFailed, error.to_string()),
        })?;
        let ends = match &frame {
            None | Some(Frame::Trailers(_)) => true,
            Some(Frame::Data(_)) => body.is_end(),
        };
        if let Some(frame) = &frame {
            sending(frame);
        }
        let taken = Cell::new(0);
        let sent = async {
            match frame {
                Some(Frame::Data(mut data)) => {
                    let length = data.len();
                    std::future::poll_fn(|cx| {
                        let sent = place.link.poll_data(cx, &place.stream, &mut data, ends);
                        taken.set(length - data.len());
                        sent
                    })
                    .await
                }
                Some(Frame::Trailers(fields)) => {
                    std::future::poll_fn(|cx| place.link.poll_trailers(cx, &place.stream, fields.as_wire())).await
                }
                None => place.finish().await,
            }
        };
        match in_steps(stall, TAKEN, || taken.get(), sent).await {
            Ok(Ok(())) if ends => return Ok(()),
            Ok(Ok(())) => {}
            Ok(Err(Gone(code))) => return Err(Unsent::Sink(code)),
            Err(_) => return Err(Unsent::Source(Reason::SlowCaller, "the other side stopped reading".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{LocalSet, yield_now};

    use super::*;
    use crate::{
        http::Limits,
        mesh::{link::Link, stream::Asked},
    };

    /// What can be sent again of a body of these pieces, of which all but the last `left` were sent when the stream was refused.
    async fn refused(pieces: &[&'static [u8]], left: usize) -> Option<Vec<u8>> {
        let link = Rc::new(Link::new(&Limits::default()));
        let place = Rc::new(link.open(Asked { to_head: false, upgrade: None }, false, |_| {}));
        let pieces = pieces.iter().map(|piece| Frame::Data(Bytes::from_static(piece))).collect();
        let body = Body::Again(Box::new(Again { pieces, rest: Body::Empty, length: Some(7) }));
        LocalSet::new()
            .run_until(async {
                if left > 0 {
                    // Nothing more fits.
                    place.stream.state.borrow_mut().window = 4;
                }
                let pump = Pump::start(place.clone(), body, Duration::from_secs(5)).await.ok()?;
                yield_now().await;
                place.stream.state.borrow_mut().give_up(Code::Refused);
                let mut body = pump.take_back().await?;
                assert_eq!(body.length(), Some(7), "it is announced as it was");
                let mut whole = Vec::new();
                while let Ok(Some(Frame::Data(data))) = body.frame().await {
                    whole.extend_from_slice(&data);
                }
                assert!(body.is_end());
                Some(whole)
            })
            .await
    }

    #[tokio::test]
    async fn a_body_that_was_sent_in_vain_is_whole_again() {
        assert_eq!(refused(&[b"abcd", b"efg"], 0).await.as_deref(), Some(&b"abcdefg"[..]), "all of it was sent");
        assert_eq!(refused(&[b"abcd", b"efg"], 1).await.as_deref(), Some(&b"abcdefg"[..]), "a piece was on its way");
        assert_eq!(refused(&[b"abcdefg", b"hij", b"k"], 2).await.as_deref(), Some(&b"abcdefghijk"[..]), "half a piece was sent");
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        static LARGE: [u8; KEPT] = [b'x'; KEPT];
        assert!(refused(&[&LARGE], 0).await.is_some());
        assert_eq!(refused(&[&LARGE, b"y"], 0).await, None);
        assert_eq!(refused(&[b"z".as_slice(); KEPT_PIECES + 1], 0).await, None);
    }
}
