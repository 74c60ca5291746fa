//! Sets of rules, and their intersection.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::ControlFlow;

use smallvec::SmallVec;

/// Words of 64 rules that are intersected at a time: they stay on the stack.
const CHUNK_WORDS: usize = 64;
const CHUNK_RULES: usize = CHUNK_WORDS * 64;
/// Up to so many candidates are checked one by one rather than intersected.
const FEW: usize = 24;
/// Up to so many are asked right away.
const ASKED: usize = 3;
/// A set that holds at least one rule in so many is also kept as bits.
const DENSE: usize = 32;

/// A set of rules: sorted numbers, and bits too if there are many of them.
#[derive(Debug, Default)]
pub(super) struct Posting {
    rules: Vec<u32>,
    bits: Option<Box<[u64]>>,
}

impl Posting {
    /// Adds a rule; rules come in ascending order, the same one perhaps several times.
    pub(super) fn add(&mut self, rule: u32) {
        if self.rules.last() != Some(&rule) {
            self.rules.push(rule);
        }
    }

    /// Settles the set once all of `total` rules have been added.
    pub(super) fn seal(&mut self, total: usize) {
        self.rules.shrink_to_fit();
        if self.rules.len().saturating_mul(DENSE) > total && self.rules.len() > FEW {
            let mut bits = vec![0u64; total.div_ceil(64)];
            for rule in &self.rules {
                if let Some(word) = bits.get_mut(word_of(*rule)) {
                    *word |= 1 << (rule % 64);
                }
            }
            self.bits = Some(bits.into());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rules.len()
    }

    /// Sets the bits of the rules from `first` on that fit into `chunk`.
    fn mark(&self, first: usize, chunk: &mut [u64; CHUNK_WORDS]) {
        if let Some(bits) = &self.bits {
            let words = bits.iter().skip(first / 64);
            chunk.iter_mut().zip(words).for_each(|(to, from)| *to |= from);
            return;
        }
        let start = self.rules.partition_point(|rule| index(*rule) < first);
        for rule in self.rules.iter().skip(start).map(|rule| index(*rule) - first).take_while(|at| *at < CHUNK_RULES) {
            if let Some(word) = chunk.get_mut(rule / 64) {
                *word |= 1 << (rule % 64);
            }
        }
    }
}

fn index(rule: u32) -> usize {
    usize::try_from(rule).unwrap_or(usize::MAX)
}

fn word_of(rule: u32) -> usize {
    index(rule) / 64
}

/// The rules that one dimension of a call leaves in the race: a union of sets.
#[derive(Default)]
pub(super) struct Union<'i> {
    postings: SmallVec<[&'i Posting; 8]>,
    /// How many rules at most.
    len: usize,
}

impl<'i> Union<'i> {
    pub(super) fn add(&mut self, posting: &'i Posting) {
        if posting.len() > 0 {
            self.postings.push(posting);
            self.len += posting.len();
        }
    }

    /// So few rules are left that there is no need to look at other dimensions.
    pub(super) fn is_few(&self) -> bool {
        self.len <= ASKED
    }
}

/// Calls `each` with the rules that are in all of `dimensions`, in ascending order, perhaps with others among them.
pub(super) fn intersect(dimensions: &[Union<'_>], total: usize, each: &mut dyn FnMut(u32) -> ControlFlow<()>) -> ControlFlow<()> {
    let Some(fewest) = dimensions.iter().min_by_key(|union| union.len) else {
        return (0..u32::try_from(total).unwrap_or(u32::MAX)).try_for_each(each);
    };
    match fewest.postings.as_slice() {
        [] => ControlFlow::Continue(()),
        [one] if fewest.len <= FEW => one.rules.iter().try_for_each(|rule| each(*rule)),
        some if fewest.len <= FEW => {
            let mut rules: SmallVec<[u32; FEW]> = some.iter().flat_map(|posting| posting.rules.iter().copied()).collect();
            rules.sort_unstable();
            rules.dedup();
            rules.into_iter().try_for_each(each)
        }
        _ => (0..total).step_by(CHUNK_RULES).try_for_each(|first| intersect_chunk(dimensions, first, total, each)),
    }
}

fn intersect_chunk(
    dimensions: &[Union<'_>],
    first: usize,
    total: usize,
    each: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut left = [u64::MAX; CHUNK_WORDS];
    for union in dimensions.iter().filter(|union| !union.postings.iter().any(|posting| posting.len() == total)) {
        let mut marked = [0u64; CHUNK_WORDS];
        union.postings.iter().for_each(|posting| posting.mark(first, &mut marked));
        left.iter_mut().zip(marked).for_each(|(left, marked)| *left &= marked);
        if left.iter().all(|word| *word == 0) {
            return ControlFlow::Continue(());
        }
    }
    for (at, word) in left.into_iter().enumerate() {
        let mut word = word;
        while word != 0 {
            let rule = first + at * 64 + usize::try_from(word.trailing_zeros()).unwrap_or(0);
            if rule >= total {
                return ControlFlow::Continue(());
            }
            each(u32::try_from(rule).unwrap_or(u32::MAX))?;
            word &= word - 1;
        }
    }
    ControlFlow::Continue(())
}

/// A map from what rules name. Operators choose the keys, callers only look them up, so a quick hash is a safe one.
pub(super) type NameMap<K, V> = HashMap<K, V, BuildHasherDefault<QuickHash>>;

/// Multiply and rotate, eight bytes at a time.
#[derive(Default)]
pub(super) struct QuickHash(u64);

impl QuickHash {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for QuickHash {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.mix(u64::from_le_bytes(*word)));
        let mut last = [0u8; 8];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        self.mix(u64::from_le_bytes(last));
    }

    fn write_u8(&mut self, byte: u8) {
        self.mix(u64::from(byte));
    }

    fn write_u16(&mut self, number: u16) {
        self.mix(u64::from(number));
    }

    fn finish(&self) -> u64 {
        // the table takes its position from the low bits and its tags from the high ones
        self.0 ^ (self.0 >> 32)
    }
}
