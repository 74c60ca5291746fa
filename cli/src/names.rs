//! Names as users type them, checked before they travel.

/// Reads `namespace/name`.
///
/// # Errors
/// When it is not two names with one slash between them.
pub(crate) fn namespaced(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if is_label(namespace) && is_label(name) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not NAMESPACE/NAME, for example `shop/orders` (lower-case letters, digits and `-`)")),
    }
}

/// Reads a SPIFFE ID or `namespace/service-account`. The control plane checks the rest.
///
/// # Errors
/// When it is neither.
pub(crate) fn identity(text: &str) -> Result<String, String> {
    let is_account = text
        .split_once('/')
        .is_some_and(|(namespace, account)| is_label(namespace) && !account.is_empty() && account.split('.').all(is_label));
    if text.starts_with("spiffe://") || is_account {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is neither a SPIFFE ID nor NAMESPACE/SERVICE-ACCOUNT, for example `shop/web`"))
}

/// The name of `names` that is most like `wanted`, if any is like it at all.
pub(crate) fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let most = wanted.chars().count() / 3 + 1;
    let (distance, name) = names.into_iter().map(|name| (distance(wanted, name), name)).min_by_key(|(distance, _)| *distance)?;
    (distance <= most).then(|| name.to_owned())
}

/// RFC 1123 label.
fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Levenshtein distance.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.chars().count()).collect();
    for (index, letter) in left.chars().enumerate() {
        let mut before = index;
        let mut last = index + 1;
        for (cell, other) in row.iter_mut().skip(1).zip(right.chars()) {
            let substituted = before + usize::from(letter != other);
            before = *cell;
            *cell = substituted.min(before + 1).min(last + 1);
            last = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_they_travel() {
        assert!(namespaced("shop/orders").is_ok());
        for wrong in ["orders", "shop/", "/orders", "Shop/orders", "shop/or_ders", "a/b/c", "-a/b", ""] {
            assert!(namespaced(wrong).is_err(), "{wrong}");
        }
        assert!(identity("shop/web").is_ok() && identity("shop/web.v2").is_ok() && identity("spiffe://a/ns/b/sa/c").is_ok());
        assert!(identity("web").is_err() && identity("http://a/b").is_err());
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_it_is_near() {
        let names = ["shop/orders", "shop/web"];
        assert_eq!(nearest("shop/ordesr", names).as_deref(), Some("shop/orders"));
        assert_eq!(nearest("bank/ledger", names), None);
        assert_eq!((distance("kitten", "sitting"), distance("", "abc"), distance("abc", "")), (3, 3, 3));
    }
}
