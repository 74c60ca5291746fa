//! Each flood again and again beside a well-behaved neighbour: what the neighbour waits, and what the agent holds.

use std::time::{Duration, Instant};

use crate::{
    Flooded, Waited, Way,
    floods::{End, Flood, over_http2, over_mesh},
};

/// Between two floods of one attacker.
const PAUSE: Duration = Duration::from_millis(50);

/// Most that is taken for the program's, in microseconds: what slows it down more may be the agent.
const PROGRAMS: u64 = 10_000;

/// How much of it.
#[derive(Clone, Debug)]
pub struct FloodPlan {
    /// Times without a flood and with it, in turn.
    pub rounds: u32,
    /// How long each takes.
    pub window: Duration,
    /// Only those with this in their name.
    pub only: String,
}

/// What one flood did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FloodSeen {
    /// Its name.
    pub name: &'static str,
    /// How it came in.
    pub way: &'static str,
    /// Frames that its sender had sent when it saw the end; none when there was none and need not be.
    pub frames: Option<usize>,
    /// It ended, or need not end.
    pub ended: bool,
    /// How often it was sent.
    pub times: usize,
    /// How much more the agent held at most, in KiB.
    pub grown: u64,
    /// Median and 99th percentile of what the neighbour waited before, in microseconds: the median of the rounds.
    pub before: [u64; 2],
    /// The same with the flood.
    pub during: [u64; 2],
    /// What somebody waited who asked the program itself, before.
    pub direct_before: [u64; 2],
    /// The same with the flood.
    pub direct_during: [u64; 2],
    /// How much longer the neighbour waited with the flood than before, without what the program took longer, but no more of that than
    /// [`PROGRAMS`]: the median of the rounds.
    pub longer: [u64; 2],
}

/// Runs all of them. `tell` hears of each one.
pub async fn floods(plan: FloodPlan, mut tell: impl FnMut(&FloodSeen, usize)) -> Vec<FloodSeen> {
    let mut all = Vec::new();
    let mut ways = [(Way::Plaintext, over_http2()), (Way::Http2, over_http2()), (Way::Mesh, over_mesh())];
    ways.iter_mut().for_each(|(_, rows)| rows.retain(|row| row.name.contains(&plan.only)));
    let mut left: usize = ways.iter().map(|(_, rows)| rows.len()).sum();
    for (way, rows) in ways {
        let flooded = Flooded::start().await;
        for flood in rows {
            let seen = one(&flooded, &flood, way, &plan).await;
            left -= 1;
            tell(&seen, left);
            all.push(seen);
        }
    }
    all
}

async fn one(flooded: &Flooded, flood: &Flood, way: Way, plan: &FloodPlan) -> FloodSeen {
    // Slowly, so that what was sent is nearly what was taken.
    let slow = flooded.ride_slowly(flood, way).await;
    let mut grown = slow.grown;
    let mut ended = slow.closed;
    let (mut before, mut during, mut times) = (Vec::new(), Vec::new(), 1);
    for _ in 0..plan.rounds {
        before.push(Percentiles::of(flooded.quiet(plan.window).await));
        let (mut waited, began) = (Waited::default(), Instant::now());
        while began.elapsed() < plan.window {
            let ridden = flooded.ride(flood, way).await;
            waited.extend(ridden.waited);
            waited.extend(flooded.quiet(PAUSE).await);
            (ended, grown, times) = (ended && ridden.closed, grown.max(ridden.grown), times + 1);
        }
        during.push(Percentiles::of(waited));
    }
    let is_bounded = flood.end == End::Bounded;
    FloodSeen {
        name: flood.name,
        way: way.as_str(),
        frames: slow.closed.then_some(slow.frames),
        ended: ended || is_bounded,
        times,
        grown,
        before: middle(before.iter().map(|round| round.neighbour)),
        during: middle(during.iter().map(|round| round.neighbour)),
        direct_before: middle(before.iter().map(|round| round.direct)),
        direct_during: middle(during.iter().map(|round| round.direct)),
        longer: middle(before.iter().zip(&during).map(|(before, during)| during.longer(before))),
    }
}

/// What others waited in a round: median and 99th percentile, in microseconds.
struct Percentiles {
    neighbour: [u64; 2],
    direct: [u64; 2],
}

impl Percentiles {
    fn of(waited: Waited) -> Self {
        Self { neighbour: percentiles(waited.neighbour), direct: percentiles(waited.direct) }
    }

    /// What the agent takes longer than before.
    fn longer(&self, before: &Self) -> [u64; 2] {
        [0, 1].map(|at| {
            let programs = self.direct[at].saturating_sub(before.direct[at]).min(PROGRAMS);
            self.neighbour[at].saturating_sub(before.neighbour[at]).saturating_sub(programs)
        })
    }
}

/// Median and 99th percentile, in microseconds.
fn percentiles(mut waited: Vec<Duration>) -> [u64; 2] {
    waited.sort_unstable();
    [50, 99].map(|part| {
        let at = (waited.len() * part / 100).min(waited.len().saturating_sub(1));
        waited.get(at).map_or(0, |waited| u64::try_from(waited.as_micros()).unwrap_or(u64::MAX))
    })
}

/// The median of each over the rounds.
fn middle(rounds: impl Iterator<Item = [u64; 2]>) -> [u64; 2] {
    let rounds: Vec<_> = rounds.collect();
    [0, 1].map(|which| {
        let mut each: Vec<u64> = rounds.iter().map(|round| round[which]).collect();
        each.sort_unstable();
        each.get(each.len() / 2).copied().unwrap_or_default()
    })
}
