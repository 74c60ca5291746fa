//! Bodies that are sent on a stream.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::{
    frame::Code,
    link::{Gone, Place},
};
use crate::{
    alarm::within,
    http::{Body, BodyError, Frame},
    refusal::{Reason, Refusal},
};

/// Sends a request's body. Dropped, it stops.
#[derive(Debug)]
pub(super) struct Pump(pub(super) JoinHandle<Option<Refusal>>);

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
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
    pub(super) fn start(place: Rc<Place>, mut body: Body, stall: Duration) -> Self {
        Self(tokio::task::spawn_local(async move {
            match copy(&place, &mut body, stall, |_| {}).await {
                Err(Unsent::Bounded(refusal)) => return Some(refusal),
                Err(Unsent::Source(_, reason)) => {
                    tracing::debug!(reason, "a request's body ended early");
                    place.fail(Code::Broken);
                }
                Ok(()) | Err(Unsent::Sink(_)) => {}
            }
            None
        }))
    }
}

/// Sends all of a body; `sent` hears of every piece.
pub(super) async fn copy(place: &Place, body: &mut Body, stall: Duration, mut sent: impl FnMut(usize)) -> Result<(), Unsent> {
    loop {
        let frame = body.frame().await.map_err(|error| match error {
            BodyError::TooLarge | BodyError::TooSlow(_) => Unsent::Bounded(error.refusal()),
            BodyError::Malformed(_) | BodyError::Broken(_) => Unsent::Source(Reason::UpstreamFailed, error.to_string()),
        })?;
        let ends = match &frame {
            None | Some(Frame::Trailers(_)) => true,
            Some(Frame::Data(_)) => body.is_end(),
        };
        let sending = async {
            match frame {
                Some(Frame::Data(data)) => {
                    sent(data.len());
                    place.send(data, ends).await
                }
                Some(Frame::Trailers(fields)) => {
                    std::future::poll_fn(|cx| place.link.poll_trailers(cx, &place.stream, fields.as_wire())).await
                }
                None => place.finish().await,
            }
        };
        match within(stall, sending).await {
            Ok(Ok(())) if ends => return Ok(()),
            Ok(Ok(())) => {}
            Ok(Err(Gone(code))) => return Err(Unsent::Sink(code)),
            Err(_) => return Err(Unsent::Source(Reason::SlowCaller, "the other side stopped reading".to_owned())),
        }
    }
}
