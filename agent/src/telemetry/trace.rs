//! W3C Trace Context (Recommendation of 23 November 2021): read strictly, continued, and which requests are recorded as spans.

use std::cell::Cell;

use tokio::time::Instant;

use crate::{hex, http::Fields};

/// Length of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// Bytes and members of a `tracestate` that are passed on (section 3.3.1).
const STATE: usize = 512;
const MEMBERS: usize = 32;
/// The flag by which a caller says that it records.
const SAMPLED: u8 = 1;
/// The flag of level 2 that says that the trace id is random; passed on.
const RANDOM: u8 = 2;

/// A request's place in a trace, as `traceparent` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    parent: u64,
    flags: u8,
}

impl TraceContext {
    /// Reads a `traceparent`; none when it is anything else than the recommendation allows. Of versions to come only what
    /// version 00 has is read.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
        let version = hex::value(value.get(..2)?)?;
        let ends = match version {
            0 => value.len() == LENGTH,
            0xff => false,
            _ => value.len() == LENGTH || value.get(LENGTH) == Some(&b'-'),
        };
        let trace = u128::from(hex::value(value.get(3..19)?)?) << 64 | u128::from(hex::value(value.get(19..35)?)?);
        let parent = hex::value(value.get(36..52)?)?;
        let flags = hex::value(value.get(53..LENGTH)?)? as u8 & (SAMPLED | RANDOM);
        (dashes && ends && trace != 0 && parent != 0).then_some(Self { trace, parent, flags })
    }

    /// Takes the trace context out of a request's fields: an invalid one, or one that is there twice, is dropped with its
    /// `tracestate`. Fields called `other` are dropped in the same go.
    pub fn take(fields: &mut Fields, other: &str) -> Option<Self> {
        let context = fields.single("traceparent").and_then(Self::parse);
        let keeps_state = context.is_some() && state_is_valid(fields);
        fields.retain(|name| match name {
            b"traceparent" => false,
            b"tracestate" => keeps_state,
            name => name != other.as_bytes(),
        });
        context
    }

    /// As `traceparent` writes it.
    pub fn header(&self) -> [u8; LENGTH] {
        let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let [.., high, low] = hex::digits(u64::from(self.flags));
        for (at, digits) in [(3, &self.trace_id()[..]), (36, &self.span_id()), (53, &[high, low])] {
            out.iter_mut().skip(at).zip(digits).for_each(|(place, digit)| *place = *digit);
        }
        out
    }

    /// The trace's id, 32 hexadecimal digits.
    pub fn trace_id(&self) -> [u8; 32] {
        hex::long(self.trace)
    }

    /// The id of the span that calls, 16 hexadecimal digits.
    pub fn span_id(&self) -> [u8; 16] {
        hex::digits(self.parent)
    }

    /// Whether the caller records.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The trace's id and the calling span's, big endian.
    pub(super) fn ids(&self) -> (u128, u64) {
        (self.trace, self.parent)
    }
}

/// Whether all `tracestate` lines together are a list of `key=value` that others can read (section 3.3.1).
fn state_is_valid(fields: &Fields) -> bool {
    let (mut bytes, mut members) = (0, 0);
    fields.values("tracestate").all(|line| {
        bytes += line.len() + 1;
        line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).all(|member| {
            members += usize::from(!member.is_empty());
            member.is_empty() || is_member(member)
        })
    }) && bytes <= STATE + 1
        && members <= MEMBERS
}

fn is_member(member: &[u8]) -> bool {
    let Some(at) = member.iter().position(|byte| *byte == b'=') else { return false };
    let (key, value) = (member.get(..at).unwrap_or_default(), member.get(at + 1..).unwrap_or_default());
    let first = key.first().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let rest = key
        .iter()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@'));
    let plain = value.iter().all(|byte| matches!(byte, 0x20..=0x7e) && !matches!(byte, b',' | b'='));
    first && rest && key.len() <= 256 && (1..=256).contains(&value.len()) && plain
}

/// What is done with one request's trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    /// What the next hop gets: with our span as the caller if it is recorded, else as it came.
    pub context: TraceContext,
    /// Whether this agent records a span of it.
    pub recorded: bool,
    /// The span that called this agent, of a recorded one.
    pub parent: Option<u64>,
}

/// Decides which requests of one worker are recorded.
#[derive(Debug)]
pub struct Sampler {
    /// Whether spans go anywhere.
    on: bool,
    /// Of requests that come without a trace: those whose random number is below.
    below: u64,
    /// Spans a second that are recorded because a caller asks.
    asked: u32,
    left: Cell<u32>,
    second: Cell<Option<Instant>>,
}

impl Sampler {
    /// A sampler that records this share (0 to 1) of the requests that begin a trace, and at most `asked` a second of those
    /// whose caller records. Without a place to send spans to, it records nothing and passes on what it gets.
    pub fn new(on: bool, share: f64, asked: u32) -> Self {
        let below = if share >= 1.0 { u64::MAX } else { (share.max(0.0) * u64::MAX as f64) as u64 };
        Self { on, below, asked, left: Cell::new(asked), second: Cell::default() }
    }

    /// The trace of a request that came with this context.
    pub fn begin(&self, came: Option<TraceContext>) -> Traced {
        match came {
            Some(context) => {
                let recorded = self.on && context.is_sampled() && self.grant();
                let span = if recorded { span_id() } else { context.parent };
                Traced { context: TraceContext { parent: span, ..context }, recorded, parent: Some(context.parent) }
            }
            None => {
                let recorded = self.on && (self.below == u64::MAX || fastrand::u64(..) < self.below);
                let trace = (u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..))).max(1);
                let context = TraceContext { trace, parent: span_id(), flags: RANDOM | u8::from(recorded) };
                Traced { context, recorded, parent: None }
            }
        }
    }

    fn grant(&self) -> bool {
        let now = Instant::now();
        if self.second.get().is_none_or(|since| now.duration_since(since).as_secs() > 0) {
            self.second.set(Some(now));
            self.left.set(self.asked);
        }
        let left = self.left.get().checked_sub(1);
        self.left.set(left.unwrap_or(0));
        left.is_some()
    }
}

fn span_id() -> u64 {
    fastrand::u64(1..)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_parent_is_read_and_written_alike() {
        let context = TraceContext::parse(VALID.as_bytes()).unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.header().as_slice(), VALID.as_bytes());
        assert_eq!(context.trace_id().as_slice(), b"0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.span_id().as_slice(), b"b7ad6b7169203331");
        // Of a later version: what is known of it, and only the flags that are known.
        let later = VALID.replacen("00-", "cc-", 1).replace("-01", "-ff-more");
        assert_eq!(TraceContext::parse(later.as_bytes()).unwrap().header().as_slice(), VALID.replace("-01", "-03").as_bytes());
    }

    #[test]
    fn anything_else_begins_a_new_trace() {
        let long = format!("{VALID}-x");
        let zero_trace = VALID.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        let zero_parent = VALID.replace("b7ad6b7169203331", &"0".repeat(16));
        let upper = VALID.to_uppercase();
        let ff = VALID.replacen("00-", "ff-", 1);
        let later = format!("{}x", VALID.replacen("00-", "01-", 1));
        for wrong in [
            "",
            "00",
            &VALID[..54],
            &long,
            &zero_trace,
            &zero_parent,
            &upper,
            &ff,
            &later,
            &VALID.replace('-', "_"),
            &VALID.replacen("0a", " a", 1),
            &VALID.replacen("0a", "+a", 1),
            &VALID.replacen("0a", "0g", 1),
        ] {
            assert_eq!(TraceContext::parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn state_goes_on_with_a_valid_parent_only_and_only_if_it_is_valid() {
        let take = |parents: &[&str], states: &[&str]| {
            let mut fields = Fields::default();
            parents.iter().for_each(|parent| fields.push(b"traceparent", parent.as_bytes()));
            fields.push(b"a", b"b");
            states.iter().for_each(|state| fields.push(b"tracestate", state.as_bytes()));
            let context = TraceContext::take(&mut fields, "other");
            assert_eq!(fields.values("traceparent").count(), 0);
            assert_eq!(fields.single("a"), Some(b"b".as_slice()));
            (context.is_some(), fields.values("tracestate").count())
        };
        assert_eq!(take(&[VALID], &["rojo=00f067aa0ba902b7,congo@x=t6 1", "b=2"]), (true, 2));
        assert_eq!(take(&[VALID, VALID], &["a=1"]), (false, 0), "two parents are none");
        assert_eq!(take(&["x"], &["a=1"]), (false, 0));
        let many = (0..33).map(|number| format!("k{number}=v")).collect::<Vec<_>>().join(",");
        for wrong in ["A=1", "a", "=1", "a=", "a=1=2", "a=\u{e9}", &many, &format!("a={}", "x".repeat(257))] {
            assert_eq!(take(&[VALID], &[wrong]), (true, 0), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_decide_within_a_bound_and_who_does_not_record_passes_on_what_came() {
        let came = TraceContext::parse(VALID.as_bytes());
        let sampler = Sampler::new(true, 0.0, 5);
        let recorded = (0..100).filter(|_| sampler.begin(came).recorded).count();
        assert_eq!(recorded, 5);
        let passed = sampler.begin(came);
        assert_eq!((Some(passed.context), passed.recorded), (came, false));
        assert!(!sampler.begin(None).recorded, "a share of nothing");
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        let again = sampler.begin(came);
        assert_eq!((again.recorded, again.parent), (true, came.map(|context| context.parent)));
        assert_eq!(again.context.trace, came.unwrap().trace);
        assert_ne!(again.context.parent, came.unwrap().parent);
        let off = Sampler::new(false, 1.0, 5);
        assert_eq!((off.begin(came).recorded, off.begin(None).recorded), (false, false));
        let all = Sampler::new(true, 1.0, 0).begin(None);
        assert!(all.recorded && all.context.is_sampled() && all.parent.is_none());
    }
}
