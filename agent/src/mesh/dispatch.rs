//! What a frame does to its stream or connection; what it may not do is a violation.

use std::{rc::Rc, task::Context};

use super::{
    STREAMS,
    budget::RESET_COST,
    frame::{Code, Frame, Kind},
    head,
    link::{LAST_STREAM, Link, Place, State, reset},
    stream::{Stream, WrongLength},
    violation::Violation,
};
use crate::http::{Heads, HeldHead, Limits, h1::ParsedRequest};
use crate::refusal::Refusal;

/// What a caller's agent asks: a whole head, and the stream to answer on.
pub(super) struct Opened {
    pub(super) place: Place,
    pub(super) parsed: Result<ParsedRequest, Refusal>,
    /// The request has no body.
    pub(super) end: bool,
    /// Its share of what heads may take.
    pub(super) held: HeldHead,
}

/// Which side of the connection we are.
pub(super) enum Role<'a> {
    /// We open streams.
    Caller,
    /// The peer opens streams.
    Callee(&'a mut dyn Serving),
}

/// Who serves the streams that the peer opens.
pub(super) trait Serving {
    /// What the heads of all streams may take.
    fn heads(&self) -> &Heads;
    /// A stream was opened.
    fn open(&mut self, opened: Opened);
    /// Lets streams go on that can.
    fn run(&mut self, cx: &mut Context<'_>);
}

impl Link {
    /// Takes one frame.
    pub(super) fn receive(self: &Rc<Self>, frame: Frame<'_>, role: &mut Role<'_>, limits: &Limits) -> Result<(), Violation> {
        let mut state = self.state.borrow_mut();
        match frame.kind {
            Kind::Head => match role {
                Role::Caller => answered(&mut state, &frame, limits),
                Role::Callee(serving) => {
                    let opened = opened(self, &mut state, &frame, serving.heads(), limits)?;
                    drop(state);
                    opened.into_iter().for_each(|opened| serving.open(opened));
                    Ok(())
                }
            },
            Kind::Data => data(&mut state, frame),
            Kind::Trailers => trailers(&mut state, &frame),
            Kind::Reset => {
                if !state.budget.spend(if matches!(role, Role::Callee(_)) { RESET_COST } else { 1 }) {
                    return Err(Violation::Flood);
                }
                if let Some(stream) = known(&mut state, frame.stream)? {
                    stream.state.borrow_mut().give_up(Code::from_number(frame.payload.number()));
                }
                Ok(())
            }
            Kind::Window => window(&mut state, &frame),
            Kind::Ping => {
                spend(&mut state)?;
                state.put(0, Kind::Pong, false, &frame.payload);
                Ok(())
            }
            Kind::Pong => {
                let said = frame.payload.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
                if state.pinged.take() == said { Ok(()) } else { Err(Violation::StrayPong) }
            }
            Kind::Goaway => {
                spend(&mut state)?;
                state.leaving = true;
                let last = frame.payload.number();
                for stream in state.streams.values().filter(|stream| matches!(role, Role::Caller) && stream.id > last) {
                    stream.state.borrow_mut().give_up(Code::Refused);
                }
                state.wake_waiting();
                Ok(())
            }
        }
    }
}

fn spend(state: &mut State) -> Result<(), Violation> {
    if state.budget.spend(1) { Ok(()) } else { Err(Violation::Flood) }
}

/// The stream of this number. `None` when it is over: what was under way comes late, which is no fault, but costs.
fn known(state: &mut State, number: u32) -> Result<Option<Rc<Stream>>, Violation> {
    if let Some(stream) = state.streams.get(&number) {
        return Ok(Some(stream.clone()));
    }
    if number > state.last { Err(Violation::NoSuchStream) } else { Ok(None) }
}

/// A stream whose own length was wrong: it is given up, the connection goes on.
fn judge(link: &mut State, stream: &Stream, outcome: Result<(), WrongLength>) {
    if outcome.is_err() {
        reset(link, stream, Code::Protocol);
    }
}

/// A request's head.
fn opened(
    link: &Rc<Link>,
    state: &mut State,
    frame: &Frame<'_>,
    heads: &Heads,
    limits: &Limits,
) -> Result<Option<Opened>, Violation> {
    if frame.stream > LAST_STREAM {
        return Err(Violation::StreamNumber);
    }
    if frame.stream <= state.last {
        let again = state.streams.contains_key(&frame.stream);
        return Err(if again { Violation::SecondHead } else { Violation::StreamNumber });
    }
    state.last = frame.stream;
    let is_full = state.leaving || state.streams.len() >= STREAMS;
    let Some(held) = Some(heads).filter(|_| !is_full).and_then(|heads| heads.hold(frame.payload.len())) else {
        spend(state)?;
        state.put(frame.stream, Kind::Reset, false, &(Code::Refused as u32).to_be_bytes());
        return Ok(None);
    };
    let stream = Rc::new(Stream::new(frame.stream, None));
    state.streams.insert(frame.stream, stream.clone());
    let parsed = head::request(&frame.payload, limits).and_then(|parsed| {
        // Without a length in the head, the frames alone say where the body ends.
        head::length(parsed.framing)?;
        if parsed.upgrade.is_some() && frame.end {
            return Err(head::malformed("a switch of protocols on a stream that has ended"));
        }
        let begun = stream.state.borrow_mut().begin_body(parsed.length, frame.end);
        begun.map(|()| parsed).map_err(|_| head::malformed("content-length of a body that is not sent"))
    });
    // An agent reads what it passes on: heads like this one are made to cost something.
    if parsed.is_err() && !state.budget.spend(RESET_COST) {
        return Err(Violation::Flood);
    }
    Ok(Some(Opened { place: Place::accepted(link, stream), parsed, end: frame.end, held }))
}

/// A response's head.
fn answered(state: &mut State, frame: &Frame<'_>, limits: &Limits) -> Result<(), Violation> {
    let Some(stream) = known(state, frame.stream)? else { return spend(state) };
    let mut receiving = stream.state.borrow_mut();
    if receiving.over().is_some() {
        drop(receiving);
        return spend(state);
    }
    let asked = receiving.asked.take().ok_or(Violation::SecondHead)?;
    let parsed = match head::response(&frame.payload, asked.to_head, asked.upgrade.as_deref(), limits) {
        Ok(parsed) => parsed,
        Err(_) if head::is_too_large(&frame.payload, limits) => {
            drop(receiving);
            reset(state, &stream, Code::Broken);
            return spend(state);
        }
        Err(_) => return Err(Violation::BadHead),
    };
    let without_body = asked.to_head || matches!(parsed.status, 204 | 304);
    if (without_body && !frame.end) || (parsed.switches && frame.end) {
        return Err(Violation::BadHead);
    }
    let length =
        if without_body || parsed.switches { None } else { head::length(parsed.framing).map_err(|_| Violation::BadHead)? };
    let begun = receiving.begin_body(length, frame.end);
    receiving.answer(parsed);
    drop(receiving);
    state.budget.answered();
    judge(state, &stream, begun);
    Ok(())
}

fn data(state: &mut State, frame: Frame<'_>) -> Result<(), Violation> {
    let length = frame.payload.len() as u32;
    state.received(length)?;
    if length == 0 && !frame.end {
        spend(state)?;
    }
    let Some(stream) = known(state, frame.stream)? else {
        state.taken(length);
        return if length == 0 { spend(state) } else { Ok(()) };
    };
    let mut receiving = stream.state.borrow_mut();
    if receiving.over().is_some() {
        drop(receiving);
        state.taken(length);
        return Ok(());
    }
    if !receiving.is_receiving() {
        return Err(Violation::OutOfOrder);
    }
    let outcome = receiving.receive(frame.payload.take(), frame.end)?;
    drop(receiving);
    if outcome.is_err() {
        state.taken(length);
    }
    judge(state, &stream, outcome);
    Ok(())
}

fn trailers(state: &mut State, frame: &Frame<'_>) -> Result<(), Violation> {
    let Some(stream) = known(state, frame.stream)? else { return spend(state) };
    let mut receiving = stream.state.borrow_mut();
    if receiving.over().is_some() {
        drop(receiving);
        return spend(state);
    }
    if !receiving.is_receiving() {
        return Err(Violation::OutOfOrder);
    }
    let fields = head::trailers(&frame.payload).map_err(|_| Violation::BadTrailers)?;
    let outcome = receiving.receive_trailers(fields);
    drop(receiving);
    judge(state, &stream, outcome);
    Ok(())
}

fn window(state: &mut State, frame: &Frame<'_>) -> Result<(), Violation> {
    spend(state)?;
    let by = frame.payload.number();
    if by == 0 {
        return Err(Violation::WindowUpdate);
    }
    if frame.stream == 0 {
        return state.widen(by);
    }
    match known(state, frame.stream)? {
        Some(stream) => stream.state.borrow_mut().widen(by),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{
        super::{
            body::BodyReader,
            frame::{put, take},
            stream::Asked,
        },
        *,
    };

    /// What a caller's agent makes of an answer in these frames: its body, or `None` when it is visibly cut.
    async fn answer(frames: &[(Kind, bool, &[u8])]) -> Result<Option<Vec<u8>>, Violation> {
        let limits = Limits::default();
        let link = Rc::new(Link::new(&limits));
        let [asked, other] = [(); 2].map(|()| Asked { to_head: false, upgrade: None });
        let place = Rc::new(link.open(asked, true, |out| out.push(b'x')));
        let other = link.open(other, true, |out| out.push(b'x'));
        let mut buf = Vec::new();
        frames.iter().for_each(|(kind, end, payload)| put(&mut buf, place.stream.id, *kind, *end, payload));
        let mut buf = BytesMut::from(&*buf);
        while let Some(frame) = take(&mut buf)? {
            link.receive(frame, &mut Role::Caller, &limits)?;
        }
        assert_eq!(other.stream.state.borrow().over(), None, "others go on");
        let (mut reader, mut body) = (BodyReader::new(place, None, None), Vec::new());
        loop {
            match reader.frame().await {
                Ok(Some(crate::http::Frame::Data(data))) => body.extend_from_slice(&data),
                Ok(Some(crate::http::Frame::Trailers(_))) => {}
                Ok(None) => return Ok(Some(body)),
                Err(_) => return Ok(None),
            }
        }
    }

    const FIVE: &[u8] = b"HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\n";

    #[tokio::test]
    async fn an_answer_that_ends_before_its_length_is_never_whole() {
        assert_eq!(answer(&[(Kind::Head, false, FIVE), (Kind::Data, true, b"hello")]).await, Ok(Some(b"hello".to_vec())));
        for frames in [
            [(Kind::Head, false, FIVE), (Kind::Data, true, b"hel".as_slice())].as_slice(),
            &[(Kind::Head, false, FIVE), (Kind::Data, false, b"hel"), (Kind::Trailers, true, b"a: b\r\n")],
            &[(Kind::Head, true, FIVE)],
            &[(Kind::Head, false, FIVE), (Kind::Data, true, b"hello!")],
            &[(Kind::Head, false, b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n"), (Kind::Data, true, b"x")],
        ] {
            assert_eq!(answer(frames).await, Ok(None), "{frames:?}");
        }
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_for_us_ends_its_stream_only() {
        let of = |fields: usize, bytes: usize| {
            let fields: String = (0..fields).map(|number| format!("x-{number}: y\r\n")).collect();
            format!("HTTP/1.1 200 \r\n{fields}x: {}\r\n\r\n", "y".repeat(bytes))
        };
        for (fields, bytes, expected) in
            [(99, 0, Some(Vec::new())), (1, 32 << 10, Some(Vec::new())), (150, 0, None), (1, 40 << 10, None)]
        {
            assert_eq!(answer(&[(Kind::Head, true, of(fields, bytes).as_bytes())]).await, Ok(expected), "{fields} {bytes}");
        }
        let smuggled = of(150, 0).replace("x-7: y", "x 7: y");
        assert_eq!(answer(&[(Kind::Head, true, smuggled.as_bytes())]).await, Ok(None));
        assert_eq!(answer(&[(Kind::Head, true, b"HTTP/1.1 200 \r\nx y: z\r\n\r\n")]).await, Err(Violation::BadHead));
    }

    #[tokio::test]
    async fn a_frame_holds_one_whole_head() {
        assert_eq!(answer(&[(Kind::Head, true, b"HTTP/1.1 200 \r\na: b\r\n\r\n")]).await, Ok(Some(Vec::new())));
        for head in [
            "HTTP/1.1 200 \r\n\r\nHTTP/1.1 200 \r\n\r\n",
            "HTTP/1.1 200 \r\n\r\nx",
            "HTTP/1.1 200 \r\na: b\r\n",
            "HTTP/1.1 200 \r\na: b",
            "HTTP/1.1 200 \na: b\n\n",
            "HTTP/1.1 200 \r\na: b\r\n\n",
            "\r\nHTTP/1.1 200 \r\n\r\n",
            "\r\n",
        ] {
            assert_eq!(answer(&[(Kind::Head, true, head.as_bytes())]).await, Err(Violation::BadHead), "{head:?}");
        }
    }
}
