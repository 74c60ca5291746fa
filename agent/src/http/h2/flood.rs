//! A budget for frames that cost much and carry nothing. The h2 crate bounds resets and CONTINUATION; SETTINGS, PING, PRIORITY,
//! WINDOW_UPDATE and empty DATA it would answer or take for ever (CVE-2019-9512, -9515, -9518), trailers it would ignore for ever on
//! streams that are over, and fields it would decode by the hundred before anybody can count them (CVE-2026-47774).

mod block;
mod dry;
mod field_count;

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

use block::Block;
pub use dry::within_budget;

use super::unseen::{Unseen, Written};
use crate::http::Limits;

/// Bytes that it takes from us for one more: a WINDOW_UPDATE for each piece of a large download is as it should be.
const BYTES_EACH: usize = 512;
/// What a stream that the caller resets costs: the work that was done for it.
const RESET_COST: u32 = 8;
/// What an answered stream earns: whoever takes answers may cancel now and then.
const ANSWER_EARNS: u32 = 4;
/// What a head costs that is too large: it may have come in few bytes.
const TOO_LARGE_COST: u32 = 2;

/// Length of the client's preface (RFC 9113 section 3.4).
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
/// Types of frames, and the flag that ends a header block (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Heads that are read before the first of them is taken: a decoded head may be large, however few bytes it came in.
const AHEAD: usize = 16;
/// Fields of a head beside those that a limit counts: `:method` and its like.
const PSEUDO: u32 = 6;

/// The budget of one connection.
#[derive(Clone, Debug)]
pub(super) struct Flood(Rc<Budget>);

#[derive(Debug)]
struct Budget {
    left: Cell<u32>,
    /// Frames that may come at once, and that are earned back a second.
    burst: u32,
    refill: u32,
    /// What it was used up by.
    why: Cell<&'static str>,
    /// Heads that were read, and are not taken yet as far as we know; and whether reading waits for that.
    ahead: Cell<usize>,
    paused: Cell<bool>,
    /// Told when the budget is used up.
    exhausted: Notify,
    since: Cell<Instant>,
    /// Since when a head is under way.
    head: Cell<Option<Instant>>,
    /// Since when the peer takes nothing of what we say.
    stuck: Cell<Option<Instant>>,
    written: Cell<usize>,
    unseen: Unseen,
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

    /// A head was larger than heads may be, and was answered so. Nothing else bounds them.
    pub(super) fn too_large(&self) {
        if !self.spend(TOO_LARGE_COST) {
            self.0.why.set("too many heads that are too large");
            self.0.exhausted.notify_one();
        }
    }

    /// A stream was refused: its head was read in vain.
    pub(super) fn refused(&self) {
        let _ = self.spend(1);
    }

    /// A head was taken.
    pub(super) fn taken(&self) {
        self.0.ahead.set(self.0.ahead.get().saturating_sub(1));
    }

    /// All heads are taken, or were refused before anybody saw them. Whether reading had waited for that: then it should go on.
    pub(super) fn all_taken(&self) -> bool {
        self.0.ahead.set(0);
        self.0.paused.take()
    }

    /// Ends when a head has been under way for `limit`. Polled whenever the connection is.
    pub(super) async fn head_stalls(&self, limit: Duration) {
        lasts(&self.0.head, limit).await;
    }

    /// Ends when the peer has taken nothing for `limit`. Polled whenever the connection is.
    pub(super) async fn write_stalls(&self, limit: Duration) {
        lasts(&self.0.stuck, limit).await;
    }

    /// Ends when the budget is used up, and says by what; from then on nothing is read.
    pub(super) async fn exhausted(&self) -> &'static str {
        self.0.exhausted.notified().await;
        self.0.why.get()
    }

    /// A stream was answered.
    pub(super) fn answered(&self) {
        self.earn(ANSWER_EARNS);
    }

    /// The streams that nobody has taken.
    pub(super) fn unseen(&self) -> &Unseen {
        &self.0.unseen
    }

    /// Notes whether the peer takes what we say.
    fn takes<T>(&self, said: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let stuck = &self.0.stuck;
        stuck.set(if said.is_pending() { stuck.get().or_else(|| Some(Instant::now())) } else { None });
        said
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
    open: bool,
    /// What is passed over belongs to a header block.
    fields: bool,
    block: Block,
    /// The highest stream so far: a header block of any other than a higher one is trailers.
    last: u32,
    /// Fields that a head may have.
    most: u32,
    /// The budget is used up: nothing more is read.
    ended: bool,
    written: Written,
}

impl<I> Guarded<I> {
    pub(super) fn new(io: I, limits: &Limits) -> (Self, Flood) {
        let (burst, refill) = (limits.control_frames, limits.control_rate);
        let budget = Budget {
            left: Cell::new(burst),
            burst,
            refill,
            why: Cell::new("too many frames that carry nothing"),
            ahead: Cell::new(0),
            paused: Cell::new(false),
            exhausted: Notify::new(),
            since: Cell::new(Instant::now()),
            head: Cell::default(),
            stuck: Cell::default(),
            written: Cell::new(0),
            unseen: Unseen::default(),
        };
        let flood = Flood(Rc::new(budget));
        (
            Self {
                io,
                flood: flood.clone(),
                skip: PREFACE,
                head: [0; FRAME_HEAD],
                have: 0,
                open: false,
                fields: false,
                block: Block::default(),
                last: 0,
                most: u32::try_from(limits.fields).unwrap_or(u32::MAX).saturating_add(PSEUDO),
                ended: false,
                written: Written::default(),
            },
            flood,
        )
    }

    /// Looks at the frame heads in what was read. `false` when the budget is used up.
    fn look(&mut self, bytes: &[u8]) -> bool {
        let within = self.pass(bytes);
        let in_head = self.have > 0 || self.open || (self.fields && self.skip > 0);
        let head = &self.flood.0.head;
        head.set(if in_head { head.get().or_else(|| Some(Instant::now())) } else { None });
        within
    }

    fn pass(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let (payload, rest) = bytes.split_at(self.skip.min(bytes.len()));
            self.skip -= payload.len();
            bytes = rest;
            if self.fields && !self.count(payload) {
                return false;
            }
            let wanted = (FRAME_HEAD - self.have).min(bytes.len());
            let (part, rest) = bytes.split_at(wanted);
            if let Some(space) = self.head.get_mut(self.have..self.have + wanted) {
                space.copy_from_slice(part);
            }
            self.have += wanted;
            bytes = rest;
            if self.have == FRAME_HEAD {
                self.have = 0;
                if !self.begin() {
                    return false;
                }
            }
        }
        true
    }

    /// A frame begins.
    fn begin(&mut self) -> bool {
        let [high, middle, low, kind, flags, stream @ ..] = self.head;
        self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.fields = matches!(kind, HEADERS | CONTINUATION);
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        let opens = kind == HEADERS && stream > self.last;
        if opens {
            let ahead = &self.flood.0.ahead;
            ahead.set(ahead.get() + 1);
        }
        if kind == HEADERS {
            self.block = Block::new(!opens);
            self.last = self.last.max(stream);
        }
        if opens {
            self.flood.0.unseen.opened(stream);
        }
        if self.fields {
            self.open = flags & END_HEADERS == 0;
            self.block.begin(if kind == HEADERS { flags } else { 0 }, self.skip);
        }
        // DATA with a payload and heads are what a connection is for; they have bounds of their own. Trailers that do not end their
        // stream are a fault for which it is reset, maybe before anybody has seen it.
        let carries = (kind == DATA && self.skip > 0) || opens;
        let cost = if kind == HEADERS && flags & END_STREAM == 0 { RESET_COST } else { 1 };
        carries || self.flood.spend(cost)
    }

    /// Counts what a header block has: each field that it has too many costs as much as a frame.
    fn count(&mut self, payload: &[u8]) -> bool {
        let excess = self.block.take(payload, self.most);
        let why = if self.block.is_long() {
            "trailers too long"
        } else if excess > 0 && !self.flood.spend(excess) {
            "too many header fields"
        } else {
            return true;
        };
        self.flood.0.why.set(why);
        false
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Pending;
        }
        if self.flood.0.ahead.get() >= AHEAD || self.flood.unseen().has_many() {
            // Whoever takes heads, and tells refusals, polls again.
            self.flood.0.paused.set(true);
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
        if let Poll::Ready(Ok(count)) = written {
            let Self { written, flood, .. } = &mut *self;
            written.look(buf.get(..count).unwrap_or_default(), &flood.0.unseen);
            flood.wrote(count);
        }
        self.flood.takes(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.flood.takes(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        block::{PADDED, PRIORITY},
        *,
    };

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

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn opened() -> Guarded<tokio::io::Empty> {
        let (mut guarded, _) = Guarded::new(tokio::io::empty(), &Limits::default());
        assert!(guarded.look(&preface()));
        guarded
    }

    #[tokio::test(start_paused = true)]
    async fn streams_and_data_cost_nothing_and_empty_data_does() {
        let mut guarded = opened();
        for stream in 0..3 * BURST {
            let stream = 2 * stream + 1;
            assert!(guarded.look(&frame(DATA, 0, 1, b"12345")) && guarded.look(&frame(HEADERS, END_HEADERS, stream, &[0x82; 3])));
        }
        let empty = (0..3 * BURST).take_while(|_| guarded.look(&frame(DATA, 0, 1, &[]))).count();
        assert_eq!(empty, BURST as usize);
    }

    #[tokio::test]
    async fn heads_are_read_as_they_are_taken_and_go_on_when_nobody_will_take_them() {
        let head = |stream: u32| frame(HEADERS, END_HEADERS, stream, &[0x82; 3]);
        let heads: Vec<u8> = (0..3 * AHEAD as u32).flat_map(|stream| head(2 * stream + 1)).collect();
        let (mut guarded, flood) = Guarded::new(std::io::Cursor::new([preface(), heads].concat()), &Limits::default());
        let mut read = |bytes: usize| {
            let mut piece = vec![0; bytes];
            let mut buf = ReadBuf::new(&mut piece);
            let read = Pin::new(&mut guarded).poll_read(&mut Context::from_waker(std::task::Waker::noop()), &mut buf);
            read.is_ready()
        };
        assert!(read(PREFACE + AHEAD * head(1).len()) && !read(head(1).len()), "as many as may be ahead");
        flood.taken();
        assert!(read(head(1).len()) && !read(1), "one for one");
        assert!(flood.all_taken() && !flood.all_taken(), "others were refused unseen");
        assert!(read(AHEAD * head(1).len()) && !read(1));
    }

    #[tokio::test(start_paused = true)]
    async fn trailers_cost_a_frame_each_and_end_the_connection_when_they_are_too_long() {
        let mut guarded = opened();
        let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 7, &[0x82]);
        assert_eq!((0..3 * BURST).take_while(|_| guarded.look(&trailers)).count(), BURST as usize + 1, "the first is a head");
        let mut guarded = opened();
        let endless = frame(HEADERS, END_HEADERS, 7, &[0x82]);
        let taken = (0..3 * BURST).take_while(|_| guarded.look(&endless)).count();
        assert_eq!(taken, (BURST / RESET_COST) as usize + 1, "each is a fault");
        let mut guarded = opened();
        assert!(guarded.look(&frame(HEADERS, END_HEADERS, 1, &[0x82; 3])));
        let long = [&[0x40, 1, b'a', 0x7f, 0x81, 0x3f][..], &[b'b'; 8192]].concat();
        assert!(!guarded.look(&frame(HEADERS, END_HEADERS, 1, &long)), "a byte more than trailers may have");
    }

    #[tokio::test(start_paused = true)]
    async fn fields_beyond_the_limit_cost_a_frame_each_in_every_form_of_a_head() {
        let most = Limits::default().fields + PSEUDO as usize;
        let heads = |flags: u8, before: &[u8], after: &[u8], fields: usize| {
            let mut guarded = opened();
            let payload = [before, &vec![0x82; fields], after].concat();
            let (first, rest) = payload.split_at(payload.len() / 2);
            (1..10_000)
                .step_by(4)
                .take_while(|stream| {
                    guarded.look(&frame(HEADERS, flags | END_HEADERS, *stream, &payload))
                        && (flags != 0 || {
                            guarded.look(&frame(HEADERS, 0, stream + 2, first))
                                && guarded.look(&frame(CONTINUATION, END_HEADERS, stream + 2, rest))
                        })
                })
                .count()
        };
        assert_eq!(heads(PADDED | PRIORITY, &[9, 0, 0, 0, 0, 16], &[0x82; 9], most), 2500, "padding is no field");
        assert_eq!(heads(PRIORITY, &[0x82; 5], &[], most), 2500, "nor is a priority");
        assert_eq!(heads(PADDED, &[0], &[], most + 200), BURST as usize / 200);
        assert_eq!(heads(0, &[], &[], most + 200), BURST as usize / 402, "nor does it help to divide a head");
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
