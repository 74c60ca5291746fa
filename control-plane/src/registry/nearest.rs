//! "Did you mean": the existing name nearest to a mistyped one.

/// The nearest of `names`, if one is near enough to be meant.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = (wanted.chars().count() / 3).max(2);
    names.map(|name| (distance(wanted, name), name)).filter(|(distance, _)| *distance <= most).min().map(|(_, name)| name)
}

/// Levenshtein distance, one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        for (cell, right) in row.iter_mut().skip(1).zip(b.chars()) {
            let next = (diagonal + usize::from(left != right)).min(*cell + 1).min(before + 1);
            diagonal = std::mem::replace(cell, next);
            before = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered_only_when_it_is_near() {
        let names = ["shop/orders", "shop/files", "bank/orders"];
        assert_eq!(nearest("shop/order", names.into_iter()), Some("shop/orders"));
        assert_eq!(nearest("shop/fiels", names.into_iter()), Some("shop/files"));
        assert_eq!(nearest("x/y", names.into_iter()), None);
    }
}
