//! What a policy of Istio's selects, and how the selections of two of them relate.

use std::collections::{BTreeMap, BTreeSet};

use super::place::{Place, Report};
use crate::names::Label;
use crate::resource::{Selector, Spec, TargetKind, TargetRef};

/// How far a policy reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// From the root namespace: everywhere.
    Mesh,
    /// Its own namespace.
    Namespace(String),
}

/// What a policy selects within its reach: workloads with these labels, these services, or everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) reach: Reach,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) services: BTreeSet<String>,
}

/// What one selection means for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// It selects all that the other one selects.
    Covers,
    /// They have nothing in common.
    Apart,
    /// They may have something in common.
    Meets,
}

impl Target {
    pub(super) fn new(reach: Reach) -> Self {
        Self { reach, labels: BTreeMap::new(), services: BTreeSet::new() }
    }

    /// Everything everywhere.
    pub(super) fn is_mesh(&self) -> bool {
        self.reach == Reach::Mesh && self.is_wide()
    }

    /// Everything within its reach.
    pub(super) fn is_wide(&self) -> bool {
        self.labels.is_empty() && self.services.is_empty()
    }

    /// Reads `selector`, `targetRef` and `targetRefs`.
    pub(super) fn read(&mut self, spec: &Place<'_>, namespace: &str, report: &mut Report<'_>) {
        let selector = spec.field("selector");
        if let Some(selector) = &selector {
            self.selector(selector, report);
        }
        let one = spec.field("targetRef");
        let many = spec.field("targetRefs").map(|refs| refs.elements(report)).unwrap_or_default();
        let exclusive = [selector.is_some(), one.is_some(), !many.is_empty()].into_iter().filter(|set| *set).count();
        if exclusive > 1 {
            report.refuse(spec.invalid("`selector`, `targetRef` and `targetRefs` exclude each other"));
        }
        one.iter().chain(&many).for_each(|reference| self.reference(reference, namespace, report));
    }

    fn selector(&mut self, selector: &Place<'_>, report: &mut Report<'_>) {
        selector.expect_fields(&["matchLabels"], report);
        let Some(labels) = selector.field("matchLabels") else { return };
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        for (key, value) in labels.entries(report) {
            match value.text_or_none() {
                Some(text) if plain(key) && plain(text) && !key.is_empty() => {
                    self.labels.insert(key.to_owned(), text.to_owned());
                }
                Some(_) => report.refuse(value.invalid("a label holds letters, digits, `-`, `_`, `.` and `/` alone")),
                None => report.refuse(value.invalid("the value of a label is a text: write it in quotes")),
            }
        }
    }

    fn reference(&mut self, reference: &Place<'_>, namespace: &str, report: &mut Report<'_>) {
        reference.expect_fields(&["group", "kind", "name", "namespace"], report);
        let text = |name: &str| reference.field(name).and_then(|field| field.text_or_none());
        let place = |name: &str| reference.field(name).unwrap_or_else(|| reference.clone());
        if text("kind") != Some("Service") || !matches!(text("group"), None | Some("" | "core")) {
            report.refuse(place("kind").not_kept("only services can be targeted"));
        } else if self.reach == Reach::Mesh {
            report.refuse(reference.not_kept("a policy for the whole mesh cannot target a service"));
        } else if text("namespace").is_some_and(|own| !own.is_empty() && own != namespace) {
            report.refuse(place("namespace").not_kept("a policy targets services of its own namespace"));
        } else if let Some(name) = text("name").filter(|name| Label::new(name).is_ok()) {
            self.services.insert(name.to_owned());
        } else {
            report.refuse(place("name").invalid("it is no name of a service"));
        }
    }

    /// What this selection means for `other`.
    pub(super) fn relation_to(&self, other: &Self) -> Relation {
        let apart = match (&self.reach, &other.reach) {
            (Reach::Namespace(own), Reach::Namespace(others)) => own != others,
            _ => false,
        };
        let contradict = self.labels.iter().any(|(key, value)| other.labels.get(key).is_some_and(|others| others != value));
        let other_services =
            !self.services.is_empty() && !other.services.is_empty() && self.services.is_disjoint(&other.services);
        if apart || contradict || other_services {
            return Relation::Apart;
        }
        let reaches = self.reach == Reach::Mesh || self.reach == other.reach;
        let labelled = self.labels.iter().all(|(key, value)| other.labels.get(key) == Some(value));
        let served = self.services.is_empty() || (!other.services.is_empty() && self.services.is_superset(&other.services));
        if reaches && labelled && served { Relation::Covers } else { Relation::Meets }
    }

    /// A policy with this target and nothing else.
    pub(super) fn spec(&self, report: &mut Report<'_>, place: &Place<'_>) -> Option<Spec> {
        let mut spec = Spec::default();
        if !self.labels.is_empty() {
            spec.selector = Some(Selector { match_labels: self.labels.clone() });
        }
        for service in &self.services {
            match Label::new(service) {
                Ok(name) => spec.target_refs.push(TargetRef { kind: TargetKind::Service, name }),
                Err(problem) => {
                    report.refuse(place.remark(&problem.to_string()));
                    return None;
                }
            }
        }
        Some(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(reach: &str, labels: &[(&str, &str)]) -> Target {
        let reach = if reach.is_empty() { Reach::Mesh } else { Reach::Namespace(reach.to_owned()) };
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Target { labels, ..Target::new(reach) }
    }

    #[test]
    fn selections_cover_meet_or_stay_apart() {
        let (mesh, shop, bank) = (target("", &[]), target("shop", &[]), target("bank", &[]));
        let (a, b) = (target("shop", &[("app", "a")]), target("shop", &[("app", "b")]));
        let (v1, a1) = (target("shop", &[("version", "1")]), target("shop", &[("app", "a"), ("version", "1")]));
        let orders = Target { services: ["orders".to_owned()].into(), ..shop.clone() };
        for (own, other, relation) in [
            (&mesh, &shop, Relation::Covers),
            (&shop, &mesh, Relation::Meets),
            (&shop, &bank, Relation::Apart),
            (&shop, &a, Relation::Covers),
            (&a, &shop, Relation::Meets),
            (&a, &b, Relation::Apart),
            (&a, &v1, Relation::Meets),
            (&a, &a1, Relation::Covers),
            (&a1, &a, Relation::Meets),
            (&shop, &orders, Relation::Covers),
            (&orders, &shop, Relation::Meets),
            (&orders, &a, Relation::Meets),
            (&a, &orders, Relation::Meets),
        ] {
            assert_eq!(own.relation_to(other), relation, "{own:?} {other:?}");
        }
    }
}
