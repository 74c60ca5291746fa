//! From nodes to documents of Istio's: which there are, what they are called, and what they select.

use std::collections::BTreeMap;

use super::Options;
use super::place::{Place, Report};
use super::rule;
use super::target::{Reach, Target};
use crate::ROOT_NAMESPACE;
use crate::manifest::Node;
use crate::rule::{Action, Rule};

/// What a document is.
pub(super) enum Document<'n> {
    Authorization(Authorized<'n>),
    Authentication(Authenticated<'n>),
}

/// An `AuthorizationPolicy`.
pub(super) struct Authorized<'n> {
    pub(super) place: Place<'n>,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) target: Target,
    pub(super) action: Action,
    pub(super) rules: Vec<Rule>,
}

/// A `PeerAuthentication`.
pub(super) struct Authenticated<'n> {
    pub(super) place: Place<'n>,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) target: Target,
    /// `spec`, where there is one.
    pub(super) spec: Option<Place<'n>>,
}

/// The documents among `nodes`; those of other groups are left out, with a remark.
pub(super) fn read<'n>(nodes: &'n [Node], options: &Options, report: &mut Report<'_>) -> Vec<Document<'n>> {
    let mut documents = Vec::new();
    for node in nodes {
        let place = Place::document(node);
        let Some(items) = place.field("items").filter(|_| is_list(&place)) else {
            documents.extend(document(place, options, report));
            continue;
        };
        for item in items.elements(report) {
            documents.extend(document(item, options, report));
        }
    }
    documents
}

/// What `kubectl get -o yaml` prints.
fn is_list(place: &Place<'_>) -> bool {
    place.field("kind").and_then(|kind| kind.text_or_none()).is_some_and(|kind| kind.ends_with("List"))
}

fn document<'n>(place: Place<'n>, options: &Options, report: &mut Report<'_>) -> Option<Document<'n>> {
    let text = |name: &str| place.field(name).and_then(|field| field.text_or_none());
    let (version, kind) = (text("apiVersion").unwrap_or_default(), text("kind").unwrap_or_default());
    let Some(version) = version.strip_prefix("security.istio.io/") else {
        let shown: String = format!("{version} {kind}").chars().take(80).collect();
        report.note(crate::manifest::Finding::new(place.at(), format!("`{}` is left out: it is no policy", shown.trim())));
        return None;
    };
    if !matches!(version, "v1" | "v1beta1") {
        let field = place.field("apiVersion").unwrap_or_else(|| place.clone());
        report.refuse(field.not_kept("only `v1` and `v1beta1` are known"));
        return None;
    }
    match kind {
        "AuthorizationPolicy" => authorization(place, options, report).map(Document::Authorization),
        "PeerAuthentication" => authentication(place, options, report).map(Document::Authentication),
        "RequestAuthentication" => {
            let field = place.field("kind").unwrap_or_else(|| place.clone());
            report.refuse(field.not_kept("tokens cannot be checked yet, and requests with a wrong one would pass"));
            None
        }
        _ => {
            let field = place.field("kind").unwrap_or_else(|| place.clone());
            report.refuse(field.not_kept("only `AuthorizationPolicy` and `PeerAuthentication` are known"));
            None
        }
    }
}

const TOP: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// Name, labels and namespace.
struct Head {
    name: String,
    labels: BTreeMap<String, String>,
    reach: Reach,
    namespace: String,
}

fn head(place: &Place<'_>, options: &Options, report: &mut Report<'_>) -> Option<Head> {
    place.expect_fields(&TOP, report);
    let Some(metadata) = place.field("metadata") else {
        report.refuse(place.remark("the field `metadata` is missing"));
        return None;
    };
    let name = match metadata.field("name") {
        Some(name) => name.text(report)?.to_owned(),
        None => {
            report.refuse(metadata.remark("the field `name` is missing"));
            return None;
        }
    };
    let namespace = match metadata.field("namespace") {
        Some(namespace) => namespace.text(report)?.to_owned(),
        None => options.namespace.clone(),
    };
    let dry_run = metadata.field("annotations").and_then(|all| all.field("istio.io/dry-run"));
    if let Some(annotation) = dry_run.filter(|annotation| annotation.text_or_none() != Some("false")) {
        report.refuse(annotation.not_kept("a policy is in force or it is not there: ask with `outrider apply --dry-run`"));
    }
    let labels = match metadata.field("labels") {
        Some(labels) => labels.entries(report),
        None => Vec::new(),
    };
    let labels = labels.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.text_or_none()?.to_owned()))).collect();
    let reach = if namespace == options.root_namespace { Reach::Mesh } else { Reach::Namespace(namespace.clone()) };
    if reach != Reach::Mesh && namespace == ROOT_NAMESPACE {
        let field = metadata.field("namespace").unwrap_or(metadata);
        report.refuse(field.not_kept("from this namespace our policies apply to the whole mesh"));
    }
    Some(Head { name, labels, reach, namespace })
}

fn authorization<'n>(place: Place<'n>, options: &Options, report: &mut Report<'_>) -> Option<Authorized<'n>> {
    let Head { name, labels, reach, namespace } = head(&place, options, report)?;
    let spec = place.field("spec");
    let mut target = Target::new(reach);
    let (mut action, mut rules) = (Action::Allow, Vec::new());
    if let Some(spec) = spec {
        spec.expect_fields(&["selector", "targetRef", "targetRefs", "rules", "action", "provider"], report);
        target.read(&spec, &namespace, report);
        if let Some(provider) = spec.field("provider") {
            report.refuse(provider.not_kept("there are no external authorizers"));
        }
        action = self::action(&spec, report)?;
        let context = rule::Context { action, namespace: &namespace, trust_domain: options.trust_domain.as_ref() };
        let listed = spec.field("rules").map(|rules| rules.elements(report)).unwrap_or_default();
        rules = listed.iter().enumerate().filter_map(|(index, one)| rule::translate(one, index, &context, report)).collect();
    }
    Some(Authorized { place, name, labels, target, action, rules })
}

fn action(spec: &Place<'_>, report: &mut Report<'_>) -> Option<Action> {
    let Some(field) = spec.field("action") else { return Some(Action::Allow) };
    match field.text(report)? {
        "ALLOW" => return Some(Action::Allow),
        "DENY" => return Some(Action::Deny),
        "AUDIT" => return Some(Action::Audit),
        "CUSTOM" => report.refuse(field.not_kept("there are no external authorizers")),
        _ => report.refuse(field.invalid("it is `ALLOW`, `DENY`, `AUDIT` or `CUSTOM`")),
    }
    None
}

fn authentication<'n>(place: Place<'n>, options: &Options, report: &mut Report<'_>) -> Option<Authenticated<'n>> {
    let Head { name, labels, reach, namespace } = head(&place, options, report)?;
    let spec = place.field("spec");
    let mut target = Target::new(reach);
    if let Some(spec) = &spec {
        spec.expect_fields(&["selector", "mtls", "portLevelMtls"], report);
        target.read(spec, &namespace, report);
    }
    Some(Authenticated { place, name, labels, target, spec })
}
