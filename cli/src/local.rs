//! Policies and policy tests from files, without a control plane.

use std::{collections::BTreeMap, path::PathBuf};

use outrider_policy::{DescribedCall, StoredPolicy, manifest as documents, testcase::PolicyTest};
use outrider_proto::v1::Manifest;

use crate::{
    failure::Failure,
    manifest::{self, Below},
    output::Console,
    report::{self, Finding},
};

/// What files hold.
#[derive(Debug, Default)]
pub(crate) struct Local {
    /// All policies of all files, as one set: that is how they are in force.
    pub(crate) policies: Vec<StoredPolicy>,
    /// Policy tests with the file each is from.
    pub(crate) tests: Vec<(String, PolicyTest)>,
}

impl Local {
    /// Reads policies and policy tests.
    ///
    /// # Errors
    /// When a file cannot be read or holds a mistake. Mistakes are shown, all of them.
    pub(crate) fn read(paths: &[PathBuf], below: Below, console: &Console) -> Result<Self, Failure> {
        let manifests = manifest::read(paths, below)?;
        let mut local = Self::default();
        let mut findings = Vec::new();
        let mut sources: BTreeMap<String, String> = BTreeMap::new();
        for one in &manifests {
            let file = documents::parse_file(&one.source, &one.yaml);
            findings.extend(file.diagnostics.into_iter().map(Finding::from));
            local.tests.extend(file.tests.into_iter().map(|test| (one.source.clone(), test)));
            for document in file.policies {
                let name = document.policy.full_name();
                let position = document.position();
                if let Some(other) = sources.insert(name.clone(), one.source.clone()) {
                    findings.push(Finding::error(&one.source, position, format!("policy `{name}` is also in `{other}`")));
                }
                local.policies.push(StoredPolicy { policy: document.policy, revision: 0 });
            }
        }
        refuse(&findings, &manifests, console).map(|()| local)
    }
}

/// Reads one described call.
///
/// # Errors
/// As for [`Local::read`].
pub(crate) fn call(path: &PathBuf, console: &Console) -> Result<DescribedCall, Failure> {
    let manifests = manifest::read(std::slice::from_ref(path), Below::Ignored)?;
    let [one] = manifests.as_slice() else { return Err(Failure::Usage("`--call` takes one file".into())) };
    documents::parse_call(&one.source, &one.yaml).map_err(|diagnostics| {
        let findings: Vec<Finding> = diagnostics.into_iter().map(Finding::from).collect();
        refuse(&findings, &manifests, console).err().unwrap_or_else(|| Failure::Invalid("no reason given".into()))
    })
}

fn refuse(findings: &[Finding], manifests: &[Manifest], console: &Console) -> Result<(), Failure> {
    if !findings.is_empty() {
        console.remark(&report::render(findings, manifests, console.remarks()));
    }
    if findings.iter().any(Finding::is_error) { Err(Failure::Invalid(report::count(findings))) } else { Ok(()) }
}
