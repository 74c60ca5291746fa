//! Istio's `AuthorizationPolicy` and `PeerAuthentication`, said in our words.
//!
//! A translation gives every call the verdict that Istio gives it, or does not come about: what cannot be said is named,
//! with its field and its place. What differs all the same is remarked on, and listed in `docs/import-istio.md`. Istio's
//! meaning is taken from its API reference for `security.istio.io/v1` and from the filters that its control plane generates.
//!
//! Two of Istio's defaults are the opposite of ours, and are treated in the open: a workload that no `ALLOW` policy selects
//! is open to everybody (`unselected`), and a workload that no `PeerAuthentication` selects accepts plaintext (`mtls`).

mod condition;
mod document;
mod mtls;
mod names;
mod place;
mod rule;
mod target;
mod unselected;
mod value;

use crate::manifest::{self, Diagnostic, Finding, Severity};
use crate::resource::{ApiVersion, Authorization, Kind, ServicePolicy, Spec};
use crate::rule::Action;
use crate::{ROOT_NAMESPACE, TrustDomain};

use document::{Authorized, Document};
use names::Names;
use place::Report;
use target::{Reach, Target};

/// What the documents do not say.
#[derive(Debug, Clone)]
pub struct Options {
    /// Istio's root namespace, whose policies apply to the whole mesh.
    pub root_namespace: String,
    /// The namespace of documents that name none.
    pub namespace: String,
    /// What `cluster.local` stands for at the beginning of a principal; itself if there is none.
    pub trust_domain: Option<TrustDomain>,
    /// What comes of workloads that no policy of the files selects.
    pub unselected: Unselected,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root_namespace: "istio-system".to_owned(),
            namespace: "default".to_owned(),
            trust_domain: None,
            unselected: Unselected::Denied,
        }
    }
}

/// What comes of workloads that no policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unselected {
    /// They are closed, as a workload without policy is here.
    #[default]
    Denied,
    /// They are open, as in Istio, by a policy for the whole mesh that says so.
    Allowed,
}

/// The policies that came of some files, and what should be known about them.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The policies, in the order of the documents they are from.
    pub policies: Vec<ServicePolicy>,
    /// Remarks, all of them warnings.
    pub notes: Vec<Diagnostic>,
}

/// Translates all documents of all files, as one set: only together do they say what is open.
///
/// `files` are names, for diagnostics, with texts.
///
/// # Errors
/// Whatever cannot be read or kept, each with its place. There is no partial result.
pub fn import(files: &[(&str, &str)], options: &Options) -> Result<Imported, Vec<Diagnostic>> {
    let mut reports: Vec<Report<'_>> = files.iter().map(|(source, _)| Report::new(source)).collect();
    let read: Vec<_> = files.iter().map(|(_, yaml)| manifest::documents(yaml)).collect();
    let mut documents = Vec::new();
    for (file, ((nodes, failed), report)) in read.iter().zip(&mut reports).enumerate() {
        failed.iter().for_each(|finding| report.refuse(finding.clone()));
        documents.extend(document::read(nodes, options, report).into_iter().map(|document| (file, document)));
    }
    let mut names = Names::default();
    let mut policies = Vec::new();
    let (mut authorized, mut authenticated) = (Vec::new(), Vec::new());
    for (file, document) in &documents {
        match document {
            Document::Authorization(policy) => authorized.push((*file, policy)),
            Document::Authentication(policy) => authenticated.push((*file, policy)),
        }
    }
    let allowing: Vec<&Target> =
        authorized.iter().filter(|(_, policy)| policy.action == Action::Allow).map(|(_, policy)| &policy.target).collect();
    let mut opened: Vec<&Target> = Vec::new();
    for (file, policy) in &authorized {
        let Some(report) = reports.get_mut(*file) else { continue };
        let mut rules = policy.rules.clone();
        if policy.action != Action::Allow && !opened.contains(&&policy.target) {
            rules.extend(unselected::rule(&policy.target, &allowing, &policy.place, report));
            opened.push(&policy.target);
        }
        policies.extend(service_policy(policy, rules, &mut names, report));
    }
    if let (Unselected::Allowed, Some((file, policy))) = (options.unselected, authorized.first())
        && let Some(report) = reports.get_mut(*file)
    {
        let mesh = Target::new(Reach::Mesh);
        policies.extend(unselected::policy(&mesh, &allowing, &policy.place, &mut names, report));
    }
    policies.extend(mtls::policies(&authenticated, &mut names, &mut reports));
    if !authorized.is_empty() && options.unselected == Unselected::Denied && !allowing.iter().any(|target| target.is_mesh()) {
        let text = "workloads that no policy of these files selects stay closed; in Istio they are open to everybody";
        reports.iter_mut().take(1).for_each(|report| report.note_file(text, "allow them with `--allow-unselected`"));
    }
    finish(reports, policies)
}

/// All or nothing.
fn finish(reports: Vec<Report<'_>>, policies: Vec<ServicePolicy>) -> Result<Imported, Vec<Diagnostic>> {
    let diagnostics = reports.into_iter().flat_map(Report::diagnostics);
    let (errors, notes): (Vec<_>, Vec<_>) = diagnostics.partition(|diagnostic| diagnostic.severity == Severity::Error);
    if errors.is_empty() { Ok(Imported { policies, notes }) } else { Err(errors) }
}

/// The policy of a document, unless nobody could read it back.
fn service_policy(
    policy: &Authorized<'_>,
    rules: Vec<crate::rule::Rule>,
    names: &mut Names,
    report: &mut Report<'_>,
) -> Option<ServicePolicy> {
    let metadata = names.metadata(&policy.place, &policy.target, &policy.name, &policy.labels, report)?;
    let spec = Spec { authorization: Some(Authorization { rules }), ..policy.target.spec(report, &policy.place)? };
    checked(resource(metadata, spec), policy, report)
}

fn resource(metadata: crate::resource::Metadata, spec: Spec) -> ServicePolicy {
    ServicePolicy { api_version: ApiVersion::V1Alpha1, kind: Kind::ServicePolicy, metadata, spec }
}

/// What is printed must be what `apply` accepts.
fn checked(policy: ServicePolicy, from: &Authorized<'_>, report: &mut Report<'_>) -> Option<ServicePolicy> {
    let problem = match policy.to_json() {
        Ok(json) => manifest::parse("", &json).1.into_iter().next().map(|diagnostic| diagnostic.message),
        Err(error) => Some(error.to_string()),
    };
    match problem {
        None => Some(policy),
        Some(problem) => {
            report.refuse(Finding::new(from.place.at(), format!("`spec` cannot be kept: {problem}")));
            None
        }
    }
}

/// Our name of a namespace of Istio's.
fn namespace_of(reach: &Reach) -> &str {
    match reach {
        Reach::Mesh => ROOT_NAMESPACE,
        Reach::Namespace(namespace) => namespace,
    }
}
