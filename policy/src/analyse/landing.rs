//! Whether a policy can be enforced on the ports where it lands.

use std::sync::Arc;

use super::{Ground, Report, Unknown};
use crate::compile::rule_name;
use crate::manifest::{Finding, Step, nearest};
use crate::resource::{MtlsMode, ServicePolicy};
use crate::rule::{Operation, Rule};
use crate::target::Layer;
use crate::{Protocol, ServiceName, Target};

pub(super) fn examine(
    report: &mut Report<'_>,
    all: &[&Arc<ServicePolicy>],
    before: Option<&Arc<ServicePolicy>>,
    ground: &Ground,
) {
    let policy = Arc::clone(&report.manifest.policy);
    let services = ground.services.as_slice();
    let landed: Vec<&Target> = services.iter().filter(|target| policy.applies_to(target)).collect();
    if !services.is_empty() {
        targets_exist(report, &policy, before, ground);
        labels_exist(report, &policy, &landed);
    }
    is_set_once(report, "mtls", all, services, |one, other| one.spec.mtls.is_some() && other.spec.mtls.is_some());
    is_set_once(report, "limits", all, services, |one, other| match (&one.spec.limits, &other.spec.limits) {
        (Some(one), Some(other)) => one.meets(other),
        _ => false,
    });
    limited_ports_exist(report, &policy, &landed);
    for (index, rule) in policy.rules().iter().enumerate() {
        http_lands_on_http(report, &policy, index, rule, &landed);
        ports_exist(report, index, rule, &landed);
    }
}

fn targets_exist(report: &mut Report<'_>, policy: &ServicePolicy, before: Option<&Arc<ServicePolicy>>, ground: &Ground) {
    let namespace = policy.metadata.namespace.as_str();
    let served = ground.services.iter().map(|target| &target.service);
    let at_home = |service: &&ServiceName| service.namespace() == namespace;
    let names: Vec<&str> = served.chain(&ground.away).filter(at_home).map(ServiceName::name).collect();
    for (index, target) in policy.spec.target_refs.iter().enumerate().filter(|(_, target)| !names.contains(&target.name.as_str()))
    {
        let at = report.manifest.position_of(&[
            Step::Field("spec"),
            Step::Field("targetRefs"),
            Step::Element(index),
            Step::Field("name"),
        ]);
        // what is in force already is no new mistake: a service may have gone for good
        let is_new = before.is_none_or(|before| !before.spec.target_refs.contains(target));
        let refused = is_new && ground.unknown == Unknown::Refused;
        let help = match (nearest(target.name.as_str(), &names), refused) {
            (Some(name), _) => format!("did you mean `{name}`?"),
            (None, true) => "start it first, or say that it is to come with `--allow-unknown-services`".to_owned(),
            (None, false) => "the policy takes effect once a service of this name registers".to_owned(),
        };
        let finding = Finding::new(at, format!("there is no service `{namespace}/{}`", target.name)).help(help);
        if refused { report.error(finding) } else { report.warning(finding) }
    }
}

fn labels_exist(report: &mut Report<'_>, policy: &ServicePolicy, landed: &[&Target]) {
    if policy.spec.selector.is_some() && landed.is_empty() {
        let at = report.manifest.position_of(&[Step::Field("spec"), Step::Field("selector")]);
        report.warning(Finding::new(at, "no workload has these labels now").help("the policy takes effect once one registers"));
    }
}

/// Sections other than `authorization` do not add up: two of them would leave it to chance which one is in force. `clash` says
/// whether both policies have the section, for ports of which some can be the same.
fn is_set_once(
    report: &mut Report<'_>,
    section: &str,
    all: &[&Arc<ServicePolicy>],
    services: &[Target],
    clash: impl Fn(&ServicePolicy, &ServicePolicy) -> bool,
) {
    let policy = Arc::clone(&report.manifest.policy);
    let others = all.iter().filter(|other| other.full_name() != policy.full_name() && other.layer() == policy.layer());
    for other in others.filter(|other| clash(&policy, other)) {
        let meet = match policy.layer() {
            Layer::Mesh => true,
            Layer::Namespace => other.metadata.namespace == policy.metadata.namespace,
            Layer::Targeted => {
                let named = other.metadata.namespace == policy.metadata.namespace
                    && other.spec.target_refs.iter().any(|target| policy.spec.target_refs.contains(target));
                named || services.iter().any(|target| policy.applies_to(target) && other.applies_to(target))
            }
        };
        if meet {
            let at = report.manifest.position_of(&[Step::Field("spec"), Step::Field(section)]);
            let message = format!("policy `{}` sets `{section}` for the same services", other.full_name());
            report.error(Finding::new(at, message).help("keep the section in one of them"));
        }
    }
}

/// A limit for ports that are none of the service's would limit nothing.
fn limited_ports_exist(report: &mut Report<'_>, policy: &ServicePolicy, landed: &[&Target]) {
    let Some(limits) = policy.spec.limits.as_ref().filter(|_| !landed.is_empty()) else { return };
    for (index, port) in limits.ports.iter().enumerate().filter(|(_, port)| landed.iter().all(|target| target.port != **port)) {
        let path = [Step::Field("spec"), Step::Field("limits"), Step::Field("ports"), Step::Element(index)];
        let message = format!("{port} is not a port of the services that the policy applies to");
        report.warning(Finding::new(report.manifest.position_of(&path), message));
    }
}

fn http_lands_on_http(report: &mut Report<'_>, policy: &ServicePolicy, index: usize, rule: &Rule, landed: &[&Target]) {
    if !rule.needs_http() {
        return;
    }
    let concerned: Vec<&&Target> = landed.iter().filter(|target| http_is_asked_at(rule, target.port)).collect();
    let opaque: Vec<&&&Target> = concerned.iter().filter(|target| !target.protocol.is_http()).collect();
    let Some(first) = opaque.first() else { return };
    let name = rule_name(policy, index, rule);
    let at = report.manifest.rule_position(index);
    let message =
        format!("rule `{name}` has conditions on HTTP, but port {} of `{}` speaks {}", first.port, first.service, Protocol::Tcp);
    let help = format!("declare the port as http, http2 or grpc, or keep the rule off it with `notPorts: [{}]`", first.port);
    // a rule for a whole namespace or mesh is in force on the other ports; where it cannot be, it holds towards refusal
    if policy.layer() == Layer::Targeted || opaque.len() == concerned.len() {
        report.error(Finding::new(at, message).help(help));
    } else {
        report.warning(Finding::new(at, format!("{message}, where it {}", on_opaque(rule))).help(help));
    }
}

fn on_opaque(rule: &Rule) -> &'static str {
    match rule.action {
        crate::Action::Allow => "allows nothing",
        crate::Action::Deny => "denies whatever its other conditions hold for",
        crate::Action::Audit => "records whatever its other conditions hold for",
    }
}

/// Whether a condition on HTTP of `rule` is looked at for calls of `port`.
fn http_is_asked_at(rule: &Rule, port: u16) -> bool {
    let reaches = |operation: &Operation| {
        (operation.ports.is_empty() || operation.ports.contains(&port)) && !operation.not_ports.contains(&port)
    };
    let asked = rule.to.iter().any(|operation| operation.needs_http() && reaches(operation));
    asked || (rule.when.as_ref().is_some_and(|when| when.needs_http()) && (rule.to.is_empty() || rule.to.iter().any(reaches)))
}

fn ports_exist(report: &mut Report<'_>, index: usize, rule: &Rule, landed: &[&Target]) {
    if landed.is_empty() {
        return;
    }
    for (entry, operation) in rule.to.iter().enumerate().filter(|(_, operation)| !operation.ports.is_empty()) {
        if operation.ports.iter().all(|port| landed.iter().all(|target| target.port != *port)) {
            let at = report.manifest.position_of(&[
                Step::Field("spec"),
                Step::Field("authorization"),
                Step::Field("rules"),
                Step::Element(index),
                Step::Field("to"),
                Step::Element(entry),
                Step::Field("ports"),
            ]);
            let mut ports: Vec<u16> = landed.iter().map(|target| target.port).collect();
            ports.sort_unstable();
            ports.dedup();
            let known = ports.iter().take(8).map(ToString::to_string).collect::<Vec<_>>().join(", ");
            report.warning(
                Finding::new(at, "none of these is a port of the services that the policy applies to")
                    .help(format!("their ports are {known}")),
            );
        }
    }
}

/// Whether plaintext is let in on some port that the policy can land on.
pub(super) fn may_be_anonymous(policy: &ServicePolicy) -> bool {
    policy
        .spec
        .mtls
        .as_ref()
        .is_some_and(|mtls| mtls.mode == MtlsMode::Permissive || mtls.ports.values().any(|mode| *mode == MtlsMode::Permissive))
}
