//! Ids in hexadecimal: eight bytes are sixteen digits.

const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// No digit.
const NONE: u8 = 0xff;
const VALUES: [u8; 256] = values();

#[expect(clippy::indexing_slicing, reason = "at compile time: a byte out of range would not compile")]
const fn values() -> [u8; 256] {
    let mut table = [NONE; 256];
    let mut value = 0;
    while value < 16 {
        table[DIGITS[value] as usize] = value as u8;
        value += 1;
    }
    table
}

/// Sixteen lower-case digits.
pub(crate) fn digits(value: u64) -> [u8; 16] {
    let (high, low) = ((value >> 32) as u32, value as u32);
    let mut out = [0; 16];
    let (first, last) = out.split_at_mut(8);
    first.copy_from_slice(&eight(high));
    last.copy_from_slice(&eight(low));
    out
}

/// Thirty-two lower-case digits.
pub(crate) fn long(value: u128) -> [u8; 32] {
    let mut out = [0; 32];
    let (first, last) = out.split_at_mut(16);
    first.copy_from_slice(&digits((value >> 64) as u64));
    last.copy_from_slice(&digits(value as u64));
    out
}

/// Eight digits at once: each half of a byte gets a byte of its own, then all become letters together.
fn eight(value: u32) -> [u8; 8] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let value = u64::from(value);
    let value = (value | value << 16) & 0x0000_ffff_0000_ffff;
    let value = (value | value << 8) & 0x00ff_00ff_00ff_00ff;
    let value = (value | value << 4) & (EACH * 0x0f);
    // 1 in each byte that is ten or more.
    let letters = ((value + EACH * 6) >> 4) & EACH;
    (value + EACH * u64::from(b'0') + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

/// The value of at most sixteen lower-case digits; anything else is none.
pub(crate) fn value(digits: &[u8]) -> Option<u64> {
    let (mut value, mut seen) = (0, 0);
    for digit in digits {
        let one = VALUES.get(usize::from(*digit)).copied().unwrap_or(NONE);
        seen |= one;
        value = value << 4 | u64::from(one & 15);
    }
    (seen < 16 && digits.len() <= 16).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_lower_case_digits_have_a_value() {
        for byte in 0..=u8::MAX {
            let expected = char::from(byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
            assert_eq!(value(&[byte]), expected.map(u64::from), "{byte}");
        }
        assert_eq!((value(b"0123456789abcdef"), value(b"00123456789abcdef")), (Some(0x0123_4567_89ab_cdef), None));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number: u64) {
            prop_assert_eq!(digits(number).escape_ascii().to_string(), format!("{number:016x}"));
            prop_assert_eq!(value(&digits(number)), Some(number));
            let long_one = u128::from(number) << 64 | u128::from(!number);
            prop_assert_eq!(long(long_one).escape_ascii().to_string(), format!("{long_one:032x}"));
        }
    }
}
