//! Bodies of HTTP/2 streams.

use h2::RecvStream;
use outrider_policy::reserved;

use super::client::Pump;
use crate::{
    http::{
        Fields, MOST_TRAILERS, Meter, TRAILER_BYTES,
        message::{BodyError, Frame},
        normalize::forbidden_in_trailers,
    },
    upstream::StreamLease,
};

/// A body that is read from a stream.
#[derive(Debug)]
pub struct BodyReader {
    stream: RecvStream,
    length: Option<u64>,
    data_ended: bool,
    ended: bool,
    _upstream: Option<Upstream>,
    /// Bounds a request's body.
    meter: Option<Meter>,
}

/// What a response's body keeps until it has ended.
#[derive(Debug)]
pub(super) struct Upstream {
    /// The stream's place on the upstream connection.
    pub(super) _lease: StreamLease,
    /// Sends what is left of the request's body.
    pub(super) _pump: Option<Pump>,
}

impl BodyReader {
    pub(super) fn new(stream: RecvStream, length: Option<u64>, upstream: Option<Upstream>) -> Self {
        let ended = stream.is_end_stream();
        Self { stream, length, data_ended: ended, ended, _upstream: upstream, meter: None }
    }

    /// The same, bounded.
    pub(super) fn metered(self, meter: Meter) -> Self {
        Self { meter: Some(meter), ..self }
    }

    /// Length if the head named it.
    pub fn length(&self) -> Option<u64> {
        if self.ended { Some(0) } else { self.length }
    }

    /// Whether nothing is left to read.
    pub fn is_end(&self) -> bool {
        self.ended
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// When the stream is reset or the connection ends.
    pub async fn frame(&mut self) -> Result<Option<Frame>, BodyError> {
        let broken = |error: h2::Error| BodyError::Broken(error.to_string());
        while !self.data_ended {
            match self.stream.data().await {
                Some(Ok(data)) => {
                    self.stream.flow_control().release_capacity(data.len()).map_err(broken)?;
                    if let Some(Err(error)) = self.meter.as_mut().map(|meter| meter.take(data.len())) {
                        (self.data_ended, self.ended) = (true, true);
                        return Err(error);
                    }
                    if !data.is_empty() {
                        return Ok(Some(Frame::Data(data)));
                    }
                }
                Some(Err(error)) => {
                    (self.data_ended, self.ended) = (true, true);
                    return Err(broken(error));
                }
                None => self.data_ended = true,
            }
        }
        if self.ended {
            return Ok(None);
        }
        let trailers = self.stream.trailers().await;
        self.ended = true;
        let Some(trailers) = trailers.map_err(broken)? else { return Ok(None) };
        let mut fields = Fields::default();
        // Of a caller. The h2 crate leaves out what is too much; what is left shows it, or the block on the wire did.
        let size: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if self.meter.is_some() && (trailers.len() > MOST_TRAILERS || size > TRAILER_BYTES) {
            return Err(BodyError::Malformed("trailers too long"));
        }
        for (name, value) in &trailers {
            if forbidden_in_trailers(name.as_str().as_bytes()) {
                return Err(BodyError::Malformed("a trailer that only a head may carry"));
            }
            if reserved(name.as_str().as_bytes()).is_none() {
                fields.push(name.as_str().as_bytes(), value.as_bytes());
            }
        }
        Ok(Some(Frame::Trailers(fields)))
    }
}
