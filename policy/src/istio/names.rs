//! Names for what is made: Istio's are longer, may hold dots, and are unique only within one kind.

use std::collections::{BTreeMap, BTreeSet};

use super::namespace_of;
use super::place::{Place, Report};
use super::target::Target;
use crate::names::Label;
use crate::resource::Metadata;

/// Longest name of ours, bytes.
const LONGEST: usize = 63;

/// The names that are taken.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeSet<(String, String)>);

impl Names {
    /// Name, namespace and labels of what comes of a document.
    pub(super) fn metadata(
        &mut self,
        place: &Place<'_>,
        target: &Target,
        name: &str,
        labels: &BTreeMap<String, String>,
        report: &mut Report<'_>,
    ) -> Option<Metadata> {
        let namespace = namespace_of(&target.reach);
        let name = self.free(namespace, name);
        match (Label::new(&name), Label::new(namespace)) {
            (Ok(name), Ok(namespace)) => Some(Metadata { name, namespace, labels: labels.clone(), annotations: BTreeMap::new() }),
            (Err(problem), _) | (_, Err(problem)) => {
                let field = place.field("metadata").unwrap_or_else(|| place.clone());
                report.refuse(field.not_kept(&problem.to_string()));
                None
            }
        }
    }

    /// The name without dots, with a number behind it where it is taken.
    fn free(&mut self, namespace: &str, name: &str) -> String {
        let plain = name.replace('.', "-");
        let cut = |length: usize| plain.get(..length).unwrap_or(&plain).trim_end_matches('-').to_owned();
        let mut wanted = cut(LONGEST);
        let mut number = 1;
        while !self.0.insert((namespace.to_owned(), wanted.clone())) {
            number += 1;
            let suffix = format!("-{number}");
            wanted = cut(LONGEST - suffix.len()) + &suffix;
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_apart_within_a_namespace() {
        let mut names = Names::default();
        assert_eq!(names.free("shop", "a.b"), "a-b");
        assert_eq!(names.free("shop", "a-b"), "a-b-2");
        assert_eq!(names.free("bank", "a.b"), "a-b");
        let long = "x".repeat(200);
        assert_eq!(names.free("shop", &long).len(), 63);
        assert!(names.free("shop", &long).ends_with("x-2"));
    }
}
