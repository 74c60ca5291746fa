//! The methods that requests may have: agents refuse all others, so no pattern may ask for one.

/// Longest method in bytes.
const MAX_BYTES: usize = 32;

/// Whether it is an upper-case token of at most 32 letters, digits, `-` and `_` that begins with a letter.
pub fn is_method(text: &[u8]) -> bool {
    is_part(text) && text.first().is_some_and(u8::is_ascii_uppercase)
}

/// Whether a method can have it somewhere.
pub(crate) fn is_part(text: &[u8]) -> bool {
    let part = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    text.len() <= MAX_BYTES && text.iter().all(part)
}
