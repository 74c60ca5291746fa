//! The check of the fuzz target `dns` on a stable compiler: over a corpus, and over random variations of it.
#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test may stop at what it did not expect")]

#[path = "../fuzz/src/dns.rs"]
#[expect(unreachable_pub, reason = "the fuzz target names this check from outside")]
mod dns;

use proptest::{collection::vec, prelude::*, sample::Index};

/// Questions as programs ask them, and some that nobody asks.
const CORPUS: &[&[u8]] = &[
    b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x06orders\x04shop\0\0\x01\0\x01",
    b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x06OrDeRs\x04shop\x03svc\x07cluster\x05local\0\0\x1c\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0",
    b"\0\0\0\0\0\x01\0\0\0\0\0\x01\0\0\x02\0\x01\0\0\x29\x10\0\0\0\x80\0\0\x0c\0\x0a\0\x08cookies!",
    b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x06orders\x04shop\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x0a\0\x04\xf0\0\0\x01",
    b"\x12\x34\x29\x00\0\x01\0\0\0\0\0\0\x01a\0\0\x06\0\x01",
    b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01",
    // Labels of letters that take two bytes as text.
    b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x3f\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\x3f\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\xfc\x03\xfc\xfc\xfc\0\0\x01\0\x01",
];

fn variations() -> impl Strategy<Value = Vec<u8>> {
    let edits = vec((any::<Index>(), 0..4_u8, any::<u8>()), 0..8);
    (any::<Index>(), edits).prop_map(|(which, edits)| {
        let mut bytes = CORPUS[which.index(CORPUS.len())].to_vec();
        for (at, edit, byte) in edits {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            match edit {
                0 => bytes.insert(at, byte),
                1 => drop(bytes.splice(at..bytes.len().min(at + 1), [byte])),
                2 => bytes.truncate(at),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_bytes_are_a_question_or_are_not_and_no_answer_is_forged(varied in variations(), random in vec(any::<u8>(), 0..64)) {
        dns::dns(&varied);
        dns::dns(&random);
    }
}

#[test]
fn the_corpus_holds() {
    CORPUS.iter().for_each(|bytes| dns::dns(bytes));
}
