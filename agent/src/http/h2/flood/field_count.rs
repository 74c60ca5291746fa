//! Counts the fields of a header block while it arrives: a field can be one byte there and a hundred in memory, and the h2 crate
//! has decoded them all before anybody can say that they are too many. Only the forms of RFC 7541 section 6 are followed, not what they
//! stand for: neither a table nor Huffman code is needed to see where a field ends.

/// Where in a header block a reader is, however its bytes are cut.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FieldCount {
    at: At,
}

/// What the next byte is. `strings` follow it before the next field.
#[derive(Clone, Copy, Debug, Default)]
enum At {
    /// The first of a field.
    #[default]
    Field,
    /// One more of an index.
    Index { strings: u8 },
    /// The first of a string's length.
    Length { strings: u8 },
    /// One more of a length, of which so much is known.
    MoreLength { strings: u8, length: usize, shift: u32 },
    /// One of a string, which has so many left.
    Text { strings: u8, left: usize },
}

impl At {
    /// After an index or a string.
    fn then(strings: u8) -> Self {
        strings.checked_sub(1).map_or(Self::Field, |strings| Self::Length { strings })
    }

    fn text(strings: u8, left: usize) -> Self {
        if left == 0 { Self::then(strings) } else { Self::Text { strings, left } }
    }

    /// After the first byte of a field; and whether it is one, which a change of the table's size is not.
    fn begun(byte: u8) -> (Self, bool) {
        let (prefix, is_literal) = match byte {
            0x80.. => (0x7f, false),
            0x40..0x80 => (0x3f, true),
            0x20..0x40 => (0x1f, false),
            ..0x20 => (0x0f, true),
        };
        let index = byte & prefix;
        let strings = u8::from(is_literal) + u8::from(is_literal && index == 0);
        let at = if index == prefix { Self::Index { strings } } else { Self::then(strings) };
        (at, !(0x20..0x40).contains(&byte))
    }
}

impl FieldCount {
    /// Passes over some bytes of the block. Returns how many fields began in them.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> u32 {
        let mut fields = 0_u32;
        while let Some((&byte, mut rest)) = bytes.split_first() {
            let more = byte & 0x80 != 0;
            self.at = match self.at {
                At::Field => {
                    let (at, is_field) = At::begun(byte);
                    fields = fields.saturating_add(u32::from(is_field));
                    at
                }
                At::Index { strings } if more => At::Index { strings },
                At::Index { strings } => At::then(strings),
                At::Length { strings } => match byte & 0x7f {
                    0x7f => At::MoreLength { strings, length: 0x7f, shift: 0 },
                    length => At::text(strings, usize::from(length)),
                },
                At::MoreLength { strings, length, shift } => {
                    // Longer than any frame: the h2 crate ends the connection.
                    let part = usize::from(byte & 0x7f).checked_shl(shift).unwrap_or(usize::MAX);
                    let length = length.saturating_add(part);
                    if more { At::MoreLength { strings, length, shift: shift + 7 } } else { At::text(strings, length) }
                }
                At::Text { strings, left } => {
                    let skipped = left.min(bytes.len());
                    rest = bytes.get(skipped..).unwrap_or_default();
                    At::text(strings, left - skipped)
                }
            };
            bytes = rest;
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks and how many fields they have: those of RFC 7541 appendix C, and long integers.
    fn blocks() -> Vec<(Vec<u8>, u32)> {
        let long = |length: usize| {
            let rest = length - 127;
            [&[0x40, 1, b'a', 0x7f, (rest % 128) as u8 | 0x80, (rest / 128) as u8][..], &vec![0xff; length]].concat()
        };
        vec![
            (Vec::new(), 0),
            (b"\x40\x0acustom-key\x0dcustom-header".to_vec(), 1),
            (b"\x04\x0c/sample/path".to_vec(), 1),
            (b"\x10\x08password\x06secret".to_vec(), 1),
            (b"\x82\x86\x84\x41\x0fwww.example.com".to_vec(), 4),
            (b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff".to_vec(), 4),
            // The table's size, a long index, empty strings.
            (b"\x20\x3f\xe1\x1f\xff\x80\x80\x01\x7f\x80\x01\x01b\x00\x00\x00\x82".to_vec(), 4),
            (long(300), 1),
            (long(16_000).repeat(3), 3),
        ]
    }

    #[test]
    fn fields_are_counted_however_a_block_is_cut() {
        for (block, fields) in blocks() {
            for step in [1, 2, 3, 7, 100, 1 << 20] {
                let mut count = FieldCount::default();
                let counted: u32 = block.chunks(step).map(|piece| count.pass(piece)).sum();
                assert_eq!(counted, fields, "{block:x?} in pieces of {step}");
                assert!(matches!(count.at, At::Field), "{block:x?}");
            }
        }
    }

    #[test]
    fn lengths_without_end_are_no_overflow() {
        let mut count = FieldCount::default();
        assert_eq!(count.pass(&[&[0, 0xff][..], &[0xff; 1000], &[0x7f], b"text"].concat()), 1);
    }
}
