//! `outrider import`: policies of other meshes as ours. Needs no mesh.

use std::path::PathBuf;

use outrider_policy::{
    TrustDomain,
    istio::{self, Options, Unselected},
};

use crate::{
    failure::{Exit, Failure},
    manifest::{self, Below},
    output::Console,
    report::{self, Finding},
};

/// Something has no counterpart here.
const NOT_KEPT: Exit = Exit::Program(3);

/// Turn policies of another mesh into policies of Outrider with the same verdicts.
///
/// Prints the result; nothing is stored. What cannot be kept is refused, by the name of its field, with exit code 3.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outrider import istio -f mesh/ > policies.yaml
  kubectl get authorizationpolicies,peerauthentications -A -o yaml | outrider import istio -f - | outrider apply -f - --dry-run")]
pub(crate) struct Import {
    #[command(subcommand)]
    from: From,
}

/// The meshes that are understood.
#[derive(Debug, clap::Subcommand)]
enum From {
    /// Istio's `AuthorizationPolicy` and `PeerAuthentication` (security.istio.io/v1 and v1beta1)
    ///
    /// All policies of the mesh belong into one call: only together do they say which workloads are open. Remarks about what to
    /// look at go to standard error. docs/import-istio.md has the whole mapping.
    Istio(Istio),
}

/// What `import istio` is told.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outrider import istio -f mesh/ --trust-domain mesh.internal > policies.yaml
  outrider import istio -f policy.yaml -o json")]
struct Istio {
    /// Files, directories (their *.yaml, *.yml and *.json files), or - for standard input
    #[arg(short, long = "file", required = true, num_args = 1.., value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Istio's root namespace, whose policies apply to the whole mesh
    #[arg(long, default_value = "istio-system", value_name = "NAMESPACE")]
    root_namespace: String,
    /// The namespace of documents that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The trust domain that `cluster.local` stands for in principals [default: cluster.local itself]
    #[arg(long, value_name = "TRUST-DOMAIN")]
    trust_domain: Option<TrustDomain>,
    /// Also allow everything to workloads that no policy of the files selects, as Istio does
    #[arg(long)]
    allow_unselected: bool,
}

impl Import {
    /// Runs the verb.
    pub(crate) fn run(self, console: &Console) -> Result<Exit, Failure> {
        match self.from {
            From::Istio(verb) => verb.run(console),
        }
    }
}

impl Istio {
    fn run(self, console: &Console) -> Result<Exit, Failure> {
        let manifests = manifest::read(&self.files, Below::Ignored)?;
        let texts: Vec<(&str, &str)> = manifests.iter().map(|one| (one.source.as_str(), one.yaml.as_str())).collect();
        let unselected = if self.allow_unselected { Unselected::Allowed } else { Unselected::Denied };
        let Self { root_namespace, namespace, trust_domain, .. } = self;
        let (policies, diagnostics) =
            match istio::import(&texts, &Options { root_namespace, namespace, trust_domain, unselected }) {
                Ok(imported) => (Some(imported.policies), imported.notes),
                Err(diagnostics) => (None, diagnostics),
            };
        let findings: Vec<Finding> = diagnostics.into_iter().map(Finding::from).collect();
        if !findings.is_empty() {
            console.remark(report::render(&findings, &manifests, console.remarks()).trim_end());
        }
        let Some(policies) = policies else {
            console.remark(&format!("error: nothing was imported: {}", report::count(&findings)));
            return Ok(NOT_KEPT);
        };
        if policies.is_empty() {
            console.remark("there is no `AuthorizationPolicy` and no `PeerAuthentication` that says anything in these files");
        }
        if console.is_json() {
            console.value(&policies)?;
        } else {
            console.documents(&policies)?;
        }
        Ok(Exit::Done)
    }
}
