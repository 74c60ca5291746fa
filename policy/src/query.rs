//! The one spelling of a query that policy, router and upstream read.

use std::borrow::Cow;

use crate::path::{hex, is_unreserved};

/// Why a query is refused, and at which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {at} of the query")]
pub struct QueryProblem {
    /// What is wrong.
    pub kind: QueryProblemKind,
    /// Where, counted from 0.
    pub at: usize,
}

/// What makes a query malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueryProblemKind {
    /// White space, a control character, `#`, or a byte beyond ASCII.
    #[error("a byte that must be percent-encoded")]
    Byte,
    /// `%` without two hexadecimal digits: programs keep it, drop it, or refuse it, and decoding what follows could complete it.
    #[error("an incomplete percent escape")]
    Escape,
}

/// The canonical spelling of a query, without its `?`.
///
/// Escapes of unreserved characters are decoded and the digits of all others written in upper case: that is the same query
/// (RFC 3986 section 6.2.2). Nothing else is changed. Applying it twice is applying it once. Borrows when there is nothing to
/// change.
pub fn canonical(raw: &[u8]) -> Result<Cow<'_, str>, QueryProblem> {
    let mut has_escapes = false;
    for (at, &byte) in raw.iter().enumerate() {
        if !byte.is_ascii_graphic() || byte == b'#' {
            return Err(QueryProblem { kind: QueryProblemKind::Byte, at });
        }
        has_escapes |= byte == b'%';
    }
    let query = std::str::from_utf8(raw).map_err(|_| QueryProblem { kind: QueryProblemKind::Byte, at: 0 })?;
    if has_escapes { rewritten(query) } else { Ok(Cow::Borrowed(query)) }
}

fn rewritten(query: &str) -> Result<Cow<'_, str>, QueryProblem> {
    let mut rewritten: Option<String> = None;
    let mut at = 0;
    while let Some(&byte) = query.as_bytes().get(at) {
        let (length, decoded) = if byte == b'%' { (3, escape(query.as_bytes(), at)?) } else { (1, None) };
        let spelled = query.get(at..at + length).unwrap_or_default();
        let is_new = byte == b'%' && (decoded.is_some() || spelled.bytes().any(|digit| digit.is_ascii_lowercase()));
        if is_new {
            let out = rewritten.get_or_insert_with(|| query.get(..at).unwrap_or_default().to_owned());
            match decoded {
                Some(character) => out.push(character),
                None => out.push_str(&spelled.to_ascii_uppercase()),
            }
        } else if let Some(out) = &mut rewritten {
            out.push_str(spelled);
        }
        at += length;
    }
    Ok(rewritten.map_or(Cow::Borrowed(query), Cow::Owned))
}

/// The unreserved character that the escape at `at` stands for, if it stands for one.
fn escape(query: &[u8], at: usize) -> Result<Option<char>, QueryProblem> {
    let digit = |offset: usize| query.get(at + offset).and_then(|byte| hex(*byte));
    let (Some(high), Some(low)) = (digit(1), digit(2)) else {
        return Err(QueryProblem { kind: QueryProblemKind::Escape, at });
    };
    let value = high << 4 | low;
    Ok(is_unreserved(value).then(|| char::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_query_has_one_spelling_and_keeps_its_meaning() {
        for (raw, expected) in [
            ("", ""),
            ("debug=1", "debug=1"),
            ("d%65bug=%31", "debug=1"),
            ("%64%65%62%75%67=1&x=%2d%2E%5f%7e", "debug=1&x=-._~"),
            ("a=%2f%3d%26%2B&b=+", "a=%2F%3D%26%2B&b=+"),
            ("a=%2F", "a=%2F"),
            ("a=%00%ff", "a=%00%FF"),
            ("a=%2565", "a=%2565"),
            ("a=%25%36%35", "a=%2565"),
            ("a[]={x}|y&//../?;", "a[]={x}|y&//../?;"),
        ] {
            assert_eq!(canonical(raw.as_bytes()).unwrap(), expected, "{raw}");
        }
    }

    #[test]
    fn what_needs_no_change_is_not_copied() {
        for raw in ["a=b&c=d", "", "a=%2F%20", "x?y/z"] {
            assert!(matches!(canonical(raw.as_bytes()), Ok(Cow::Borrowed(_))), "{raw}");
        }
    }

    #[test]
    fn malformed_queries_are_refused_where_they_are() {
        use QueryProblemKind::*;
        for (raw, kind, at) in [
            ("a b", Byte, 1),
            ("a#b", Byte, 1),
            ("\u{e9}", Byte, 0),
            ("a\t", Byte, 1),
            ("a=100%", Escape, 5),
            ("%6", Escape, 0),
            ("a=%zz", Escape, 2),
            // Decoding the second alone would complete the first.
            ("%2%35", Escape, 0),
            ("%%36%35", Escape, 0),
            ("%u0065", Escape, 0),
        ] {
            assert_eq!(canonical(raw.as_bytes()), Err(QueryProblem { kind, at }), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn canonical_is_idempotent_and_stands_for_the_same_bytes(raw in proptest::collection::vec(proptest::sample::select(b"%25346EeFaf&=+~./ #\xff".to_vec()), 0..24)) {
            let decoded = |query: &str| {
                let (mut bytes, mut at) = (Vec::new(), 0);
                while let Some(&byte) = query.as_bytes().get(at) {
                    let escaped = (byte == b'%').then(|| u8::from_str_radix(&query[at + 1..at + 3], 16).unwrap());
                    // Whether a reserved character is escaped makes a difference.
                    bytes.push((escaped.is_some() && !is_unreserved(escaped.unwrap()), escaped.unwrap_or(byte)));
                    at += if byte == b'%' { 3 } else { 1 };
                }
                bytes
            };
            if let Ok(once) = canonical(&raw) {
                prop_assert_eq!(&canonical(once.as_bytes()).unwrap(), &once);
                prop_assert_eq!(decoded(&once), decoded(std::str::from_utf8(&raw).unwrap()));
            }
        }
    }
}
