//! What Istio leaves open: a workload that no `ALLOW` policy selects.
//!
//! Here nothing is allowed unless a rule allows it, so the opening is written down as a rule. Its expression excludes the
//! workloads that an `ALLOW` policy selects, by their labels, services and namespaces.

use std::collections::{BTreeMap, BTreeSet};

use super::names::Names;
use super::place::{Place, Report};
use super::target::{Reach, Relation, Target};
use crate::names::Label;
use crate::resource::{Authorization, ServicePolicy, Spec};
use crate::rule::{Action, Rule};
use crate::when::When;

/// The name of such rules.
const NAME: &str = "no-allow-policy-selects-it";

/// The rule that allows everything to the workloads of `target` that none of `allowing` selects, if there can be any.
pub(super) fn rule(target: &Target, allowing: &[&Target], place: &Place<'_>, report: &mut Report<'_>) -> Option<Rule> {
    let rule = complement(target, allowing, place, report)?;
    let text = "no `ALLOW` policy selects these workloads, so Istio leaves them open: a rule says so now";
    report.note(
        place
            .field("spec")
            .unwrap_or_else(|| place.clone())
            .remark(text)
            .help(format!("it is called `{NAME}`; without it they are closed")),
    );
    Some(rule)
}

/// A policy of such a rule alone.
pub(super) fn policy(
    target: &Target,
    allowing: &[&Target],
    place: &Place<'_>,
    names: &mut Names,
    report: &mut Report<'_>,
) -> Option<ServicePolicy> {
    let rules = vec![complement(target, allowing, place, report)?];
    let metadata = names.metadata(place, target, "istio-unselected", &BTreeMap::new(), report)?;
    Some(super::resource(metadata, Spec { authorization: Some(Authorization { rules }), ..Spec::default() }))
}

fn complement(target: &Target, allowing: &[&Target], place: &Place<'_>, report: &mut Report<'_>) -> Option<Rule> {
    let mut excluded = Excluded::default();
    for other in allowing {
        match other.relation_to(target) {
            Relation::Covers => return None,
            Relation::Apart => {}
            Relation::Meets => excluded.add(other, target),
        }
    }
    let when = match excluded.expression() {
        None => None,
        Some(text) => match When::new(&text) {
            Ok(when) => Some(when),
            Err(problem) => {
                let spec = place.field("spec").unwrap_or_else(|| place.clone());
                let why = format!("too many `ALLOW` policies select workloads beside its own to name them all ({problem})");
                report.refuse(spec.not_kept(&why).help("select its workloads by labels"));
                return None;
            }
        },
    };
    Some(Rule { name: Label::new(NAME).ok(), action: Action::Allow, from: Vec::new(), to: Vec::new(), when })
}

/// The workloads that are not meant.
#[derive(Default)]
struct Excluded {
    /// Whole namespaces.
    namespaces: BTreeSet<String>,
    /// Values of one label, perhaps in one namespace.
    labels: BTreeMap<(Option<String>, String), BTreeSet<String>>,
    /// Whatever else, as expressions.
    others: BTreeSet<String>,
}

impl Excluded {
    fn add(&mut self, other: &Target, target: &Target) {
        let namespace = match (&other.reach, &target.reach) {
            (Reach::Namespace(namespace), Reach::Mesh) => Some(namespace.clone()),
            _ => None,
        };
        let mut labels = other.labels.iter();
        match (labels.next(), labels.next(), other.services.is_empty()) {
            (None, _, true) => self.namespaces.extend(namespace),
            (Some((key, value)), None, true) => {
                self.labels.entry((namespace, key.clone())).or_default().insert(value.clone());
            }
            _ => {
                let namespace = namespace.map(|namespace| one_of("destination.namespace", &[namespace].into()));
                let services = (!other.services.is_empty()).then(|| one_of("destination.service", &other.services));
                let labels = other.labels.iter().map(|(key, value)| labelled(key, &[value.clone()].into()));
                let all: Vec<String> = namespace.into_iter().chain(services).chain(labels).collect();
                self.others.insert(all.join(" && "));
            }
        }
    }

    /// True where none of them is meant; nothing where that is always.
    fn expression(&self) -> Option<String> {
        let namespaces = (!self.namespaces.is_empty()).then(|| one_of("destination.namespace", &self.namespaces));
        let labels = self.labels.iter().map(|((namespace, key), values)| match namespace {
            Some(namespace) => {
                format!("{} && {}", one_of("destination.namespace", &[namespace.clone()].into()), labelled(key, values))
            }
            None => labelled(key, values),
        });
        let all = namespaces.into_iter().chain(labels).chain(self.others.iter().cloned());
        let all: Vec<String> = all.map(|one| format!("!({one})")).collect();
        (!all.is_empty()).then(|| all.join(" && "))
    }
}

fn labelled(key: &str, values: &BTreeSet<String>) -> String {
    format!("\"{key}\" in destination.labels && {}", one_of(&format!("destination.labels[\"{key}\"]"), values))
}

/// Labels and names hold no character that would need an escape.
fn one_of(attribute: &str, values: &BTreeSet<String>) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("\"{value}\"")).collect();
    match quoted.as_slice() {
        [one] => format!("{attribute} == {one}"),
        many => format!("{attribute} in [{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_excluded_is_one_short_expression() {
        let label = |value: &str| Target {
            labels: [("app".to_owned(), value.to_owned())].into(),
            ..Target::new(Reach::Namespace("shop".to_owned()))
        };
        let mut excluded = Excluded::default();
        let shop = Target::new(Reach::Namespace("shop".to_owned()));
        assert_eq!(excluded.expression(), None);
        excluded.add(&label("b"), &shop);
        excluded.add(&label("a"), &shop);
        let text = r#"!("app" in destination.labels && destination.labels["app"] in ["a", "b"])"#;
        assert_eq!(excluded.expression().as_deref(), Some(text));
        let mesh = Target::new(Reach::Mesh);
        let mut excluded = Excluded::default();
        excluded.add(&shop, &mesh);
        excluded.add(&Target { services: ["orders".to_owned()].into(), ..Target::new(Reach::Namespace("bank".into())) }, &mesh);
        let text =
            r#"!(destination.namespace == "shop") && !(destination.namespace == "bank" && destination.service == "orders")"#;
        assert_eq!(excluded.expression().as_deref(), Some(text));
        assert!(When::new(text).is_ok());
    }
}
