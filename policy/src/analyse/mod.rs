//! What is wrong, or probably not meant, with policies where they land.
//!
//! One function for `apply`, for a dry run and for Kubernetes. Errors are for what cannot be enforced; warnings for rules
//! that work but say nothing, or more than most people mean.

mod covers;
mod landing;
mod rules;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::manifest::{Diagnostic, Finding, Manifest, Severity};
use crate::resource::ServicePolicy;
use crate::{ServiceName, StoredPolicy, Target};

/// Most diagnostics that are collected of one policy.
const MAX_PER_POLICY: usize = 100;

/// What is known of the mesh that policies land in.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// The ports that are served. Without any, whatever depends on where a policy lands is left out.
    pub services: Vec<Target>,
    /// Services that nobody backs now, and that are remembered.
    pub away: Vec<ServiceName>,
    /// Whether a policy may be aimed by name at a service that nobody has heard of.
    pub unknown: Unknown,
}

/// What is made of a policy that is aimed at a service that nobody has heard of, and was not before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unknown {
    /// It is an error: it would be in force nowhere, and a misspelt name does not protect what was meant.
    #[default]
    Refused,
    /// It is a warning: the service is to come.
    Expected,
}

/// Examines the policies that are about to be applied.
///
/// `existing` are the stored policies, of which those with the name of a new one are taken as replaced. Sorted by position.
pub fn analyse(new: &[Manifest], existing: &[StoredPolicy], ground: &Ground) -> Vec<Diagnostic> {
    let replaced: BTreeSet<String> = new.iter().map(|manifest| manifest.policy.full_name()).collect();
    let kept = existing.iter().map(|stored| &stored.policy).filter(|policy| !replaced.contains(&policy.full_name()));
    let all: Vec<&Arc<ServicePolicy>> = new.iter().map(|manifest| &manifest.policy).chain(kept).collect();
    let index = covers::Index::of(&all);
    let mut diagnostics = Vec::new();
    for manifest in new {
        let mut report = Report { manifest, findings: Vec::new() };
        let before = existing.iter().map(|stored| &stored.policy).find(|old| old.full_name() == manifest.policy.full_name());
        landing::examine(&mut report, &all, before, ground);
        rules::examine(&mut report);
        covers::examine(&mut report, &index);
        report.findings.sort_by_key(|(severity, finding)| (finding.at, *severity));
        report.findings.truncate(MAX_PER_POLICY);
        diagnostics.extend(report.findings.into_iter().map(|(severity, finding)| finding.diagnostic(severity, &manifest.source)));
    }
    diagnostics
}

/// The findings about one policy.
struct Report<'a> {
    manifest: &'a Manifest,
    findings: Vec<(Severity, Finding)>,
}

impl Report<'_> {
    fn error(&mut self, finding: Finding) {
        self.findings.push((Severity::Error, finding));
    }

    fn warning(&mut self, finding: Finding) {
        self.findings.push((Severity::Warning, finding));
    }
}
