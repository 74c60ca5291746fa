//! Looking at every byte of short texts without a branch for each.

/// Whether any byte is one that `is_it` finds. Sixteen at a time and the rest once more with those before it, so that the compiler
/// needs no loop for what is left over.
#[inline]
pub(crate) fn any(bytes: &[u8], is_it: impl Fn(u8) -> bool) -> bool {
    #[inline]
    fn among<const N: usize>(piece: &[u8; N], is_it: impl Fn(u8) -> bool) -> bool {
        piece.iter().fold(false, |found, byte| found | is_it(*byte))
    }
    if let Some(last) = bytes.last_chunk::<16>() {
        bytes.as_chunks::<16>().0.iter().fold(among(last, &is_it), |found, piece| found | among(piece, &is_it))
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        among(first, &is_it) | among(last, &is_it)
    } else {
        bytes.iter().any(|byte| is_it(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_every_length_is_looked_at() {
        for length in 0..70 {
            let mut bytes = vec![b'a'; length];
            assert!(!any(&bytes, |byte| byte == b'x'), "{length}");
            for at in 0..length {
                bytes[at] = b'x';
                assert!(any(&bytes, |byte| byte == b'x'), "{at} of {length}");
                bytes[at] = b'a';
            }
        }
    }
}
