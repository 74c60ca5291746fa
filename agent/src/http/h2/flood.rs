//! A budget for frames that cost much and carry nothing. The h2 crate bounds resets and CONTINUATION; SETTINGS, PING, PRIORITY,
//! WINDOW_UPDATE and empty DATA it would answer or take for ever (CVE-2019-9512, -9515, -9518).

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::Instant,
};

use crate::http::Limits;

/// Bytes that it takes from us for one more: a WINDOW_UPDATE for each piece of a large download is as it should be.
const BYTES_EACH: usize = 512;
/// What a stream that the caller resets costs: the work that was done for it.
const RESET_COST: u32 = 8;
/// What an answered stream earns: whoever takes answers may cancel now and then.
const ANSWER_EARNS: u32 = 4;

/// Length of the client's preface (RFC 9113 section 3.4).
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
/// Types of frames, and the flag that ends a header block (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// The budget of one connection.
#[derive(Clone, Debug)]
pub(super) struct Flood(Rc<Budget>);

#[derive(Debug)]
struct Budget {
    left: Cell<u32>,
    /// Frames that may come at once, and that are earned back a second.
    burst: u32,
    refill: u32,
    /// Told when the budget is used up.
    exhausted: Notify,
    since: Cell<Instant>,
    /// Since when a head is under way.
    head: Cell<Option<Instant>>,
    /// Since when the peer takes nothing of what we say.
    stuck: Cell<Option<Instant>>,
    written: Cell<usize>,
}

impl Flood {
    fn earn(&self, frames: u32) {
        self.0.left.set(self.0.left.get().saturating_add(frames).min(self.0.burst));
    }

    fn spend(&self, frames: u32) -> bool {
        let elapsed = self.0.since.get().elapsed().as_millis();
        let earned = u32::try_from(elapsed * u128::from(self.0.refill) / 1000).unwrap_or(self.0.burst);
        if earned > 0 {
            self.0.since.set(Instant::now());
            self.earn(earned);
        }
        let left = self.0.left.get().checked_sub(frames);
        self.0.left.set(left.unwrap_or(0));
        left.is_some()
    }

    fn wrote(&self, bytes: usize) {
        let written = self.0.written.get() + bytes;
        self.0.written.set(written % BYTES_EACH);
        self.earn(u32::try_from(written / BYTES_EACH).unwrap_or(self.0.burst));
    }

    /// A stream was reset by the caller after work had begun for it.
    pub(super) fn reset(&self) {
        let _ = self.spend(RESET_COST);
    }

    /// Ends when a head has been under way for `limit`. Polled whenever the connection is.
    pub(super) async fn head_stalls(&self, limit: Duration) {
        lasts(&self.0.head, limit).await;
    }

    /// Ends when the peer has taken nothing for `limit`. Polled whenever the connection is.
    pub(super) async fn write_stalls(&self, limit: Duration) {
        lasts(&self.0.stuck, limit).await;
    }

    /// Ends when the budget is used up; from then on nothing is read.
    pub(super) async fn exhausted(&self) {
        self.0.exhausted.notified().await;
    }

    /// A stream was answered.
    pub(super) fn answered(&self) {
        self.earn(ANSWER_EARNS);
    }

    /// Notes whether the peer takes what we say.
    fn takes(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let stuck = &self.0.stuck;
        stuck.set(if written.is_pending() { stuck.get().or_else(|| Some(Instant::now())) } else { None });
        if let Poll::Ready(Ok(bytes)) = written {
            self.wrote(bytes);
        }
        written
    }
}

/// Ends when what began then has lasted for `limit`.
async fn lasts(began: &Cell<Option<Instant>>, limit: Duration) {
    let mut timer = std::pin::pin!(tokio::time::sleep(limit));
    std::future::poll_fn(|cx| {
        let Some(since) = began.get() else { return Poll::Pending };
        if timer.deadline() != since + limit {
            timer.as_mut().reset(since + limit);
        }
        timer.as_mut().poll(cx)
    })
    .await;
}

/// A transport that says nothing more once its peer has used up the budget.
#[derive(Debug)]
pub(super) struct Guarded<I> {
    io: I,
    flood: Flood,
    /// Bytes of the preface or of a payload still to pass over.
    skip: usize,
    head: [u8; FRAME_HEAD],
    have: usize,
    /// A header block is open: CONTINUATION follows.
    block: bool,
    /// What is passed over belongs to a header block.
    fields: bool,
    /// The budget is used up: nothing more is read.
    ended: bool,
}

impl<I> Guarded<I> {
    pub(super) fn new(io: I, limits: &Limits) -> (Self, Flood) {
        let (burst, refill) = (limits.control_frames, limits.control_rate);
        let budget = Budget {
            left: Cell::new(burst),
            burst,
            refill,
            exhausted: Notify::new(),
            since: Cell::new(Instant::now()),
            head: Cell::default(),
            stuck: Cell::default(),
            written: Cell::new(0),
        };
        let flood = Flood(Rc::new(budget));
        (
            Self {
                io,
                flood: flood.clone(),
                skip: PREFACE,
                head: [0; FRAME_HEAD],
                have: 0,
                block: false,
                fields: false,
                ended: false,
            },
            flood,
        )
    }

    /// Looks at the frame heads in what was read. `false` when the budget is used up.
    fn look(&mut self, bytes: &[u8]) -> bool {
        let within = self.pass(bytes);
        let in_head = self.have > 0 || self.block || (self.fields && self.skip > 0);
        let head = &self.flood.0.head;
        head.set(if in_head { head.get().or_else(|| Some(Instant::now())) } else { None });
        within
    }

    fn pass(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let wanted = (FRAME_HEAD - self.have).min(bytes.len());
            let (part, rest) = bytes.split_at(wanted);
            if let Some(space) = self.head.get_mut(self.have..self.have + wanted) {
                space.copy_from_slice(part);
            }
            self.have += wanted;
            bytes = rest;
            if self.have == FRAME_HEAD {
                self.have = 0;
                let [high, middle, low, kind, flags, ..] = self.head;
                self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.fields = matches!(kind, HEADERS | CONTINUATION);
                if self.fields {
                    self.block = flags & END_HEADERS == 0;
                }
                // DATA with a payload and HEADERS are what a connection is for; they have bounds of their own.
                let carries = (kind == DATA && self.skip > 0) || kind == HEADERS;
                if !carries && !self.flood.spend(1) {
                    return false;
                }
            }
        }
        true
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if self.look(buf.filled().get(before..).unwrap_or_default()) {
            return Poll::Ready(Ok(()));
        }
        self.flood.0.exhausted.notify_one();
        self.ended = true;
        Poll::Pending
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.flood.takes(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.flood.takes(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u32 = 1000;
    const REFILL: u32 = 100;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    fn preface() -> Vec<u8> {
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_ends_at_the_budget_however_it_is_cut() {
        let mut bytes = preface();
        for _ in 0..=BURST {
            bytes.extend_from_slice(&PING);
        }
        for step in [1, 7, 9, 17, 100, 5000] {
            let (mut guarded, _) = Guarded::new(tokio::io::empty(), &Limits::default());
            let passed = bytes.chunks(step).take_while(|piece| guarded.look(piece)).count() * step;
            let frames = (passed - PREFACE) / PING.len();
            assert!((BURST as usize).abs_diff(frames) <= 5000 / PING.len(), "{step}: {frames}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_and_data_cost_nothing_and_empty_data_does() {
        let frame =
            |kind: u8, length: u8| [&[0, 0, length, kind, 0, 0, 0, 0, 1], vec![0; usize::from(length)].as_slice()].concat();
        let (mut guarded, _) = Guarded::new(tokio::io::empty(), &Limits::default());
        assert!(guarded.look(&preface()));
        for _ in 0..3 * BURST {
            assert!(guarded.look(&frame(0, 5)) && guarded.look(&frame(1, 3)));
        }
        let empty = (0..3 * BURST).take_while(|_| guarded.look(&frame(0, 0))).count();
        assert_eq!(empty, BURST as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_end_is_noticed() {
        let whole = [0, 0, 1, HEADERS, END_HEADERS, 0, 0, 0, 1, 0x82];
        let open = [0, 0, 1, HEADERS, 0, 0, 0, 0, 1, 0x82];
        let rest = [0, 0, 1, CONTINUATION, END_HEADERS, 0, 0, 0, 1, 0x84];
        let stalls = async |bytes: &[&[u8]]| {
            let (mut guarded, flood) = Guarded::new(tokio::io::empty(), &Limits::default());
            assert!(guarded.look(&preface()));
            for piece in bytes {
                guarded.look(piece);
            }
            tokio::time::timeout(Duration::from_secs(11), flood.head_stalls(Duration::from_secs(10))).await.is_ok()
        };
        assert!(!stalls(&[]).await && !stalls(&[&whole]).await && !stalls(&[&open, &rest]).await);
        assert!(stalls(&[&open]).await && stalls(&[&whole[..9]]).await && stalls(&[&whole[..4]]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn time_and_what_the_peer_takes_earn_frames_back() {
        let (mut guarded, flood) = Guarded::new(tokio::io::empty(), &Limits::default());
        assert!(guarded.look(&preface()));
        while guarded.look(&PING) {}
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert_eq!((0..BURST).take_while(|_| guarded.look(&PING)).count(), REFILL as usize);
        flood.wrote(BYTES_EACH * 50);
        assert_eq!((0..BURST).take_while(|_| guarded.look(&PING)).count(), 50);
    }
}
