//! `outrider delete`: policies and routes out of force.

use std::path::PathBuf;

use outrider_proto::v1::DeleteRequest;
use serde::{Deserialize, Serialize};

use crate::{
    apply::{self, Change, Wait},
    args::Socket,
    failure::{Exit, Failure},
    manifest::{self, Below},
    names,
    output::Console,
    progress::Waited,
};

/// Delete policies or routes.
///
/// All that are named are deleted in one transaction, or none. What no policy allows is denied: deleting the last policy
/// of a service closes it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outrider delete servicepolicy shop/orders --wait
  outrider delete httproute shop/orders
  outrider delete -f policies/")]
pub(crate) struct Delete {
    /// Kind of resource
    #[arg(value_enum, required_unless_present = "files", requires = "names")]
    kind: Option<Kind>,
    /// Names of the resources
    #[arg(value_name = "NAMESPACE/NAME", value_parser = names::namespaced)]
    names: Vec<String>,
    /// Delete what these files name
    #[arg(short, long = "file", value_name = "FILE|DIR|-", conflicts_with = "kind")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    wait: Wait,
}

/// Kinds that can be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// A `ServicePolicy`
    #[value(name = "servicepolicy", aliases = ["servicepolicies", "policy", "policies"])]
    ServicePolicy,
    /// An `HTTPRoute`
    #[value(name = "httproute", alias = "httproutes")]
    HttpRoute,
    /// A `GRPCRoute`
    #[value(name = "grpcroute", alias = "grpcroutes")]
    GrpcRoute,
}

impl Kind {
    const ALL: [Self; 3] = [Self::ServicePolicy, Self::HttpRoute, Self::GrpcRoute];

    /// The word of wire and files.
    fn as_str(self) -> &'static str {
        match self {
            Self::ServicePolicy => "ServicePolicy",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
        }
    }
}

/// The answer of `delete`. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Deleted {
    revision: u64,
    changes: Vec<Change>,
    /// Only with `--wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<Waited>,
}

impl Delete {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        let (kind, names) = match self.kind {
            Some(kind) => (kind, self.names),
            None => names_in(&self.files)?,
        };
        let mut admin = socket.connect().await?;
        let answer = admin.delete(DeleteRequest { kind: kind.as_str().into(), names }).await?.into_inner();
        let changes: Vec<Change> = answer.changes.into_iter().map(Change::from).collect();
        if console.is_for_people() {
            apply::tell_changes(&changes, answer.revision, false, console)?;
        }
        let mut deleted = Deleted { revision: answer.revision, changes, rollout: None };
        if self.wait.is_wanted() {
            deleted.rollout = Some(self.wait.rollout(&mut admin, deleted.revision, console).await);
        }
        if !console.is_for_people() {
            console.value(&deleted)?;
        }
        if let Some(rollout) = &deleted.rollout {
            self.wait.conclude(rollout, deleted.revision, console)?;
        }
        Ok(Exit::Done)
    }
}

/// As much of a document as says what it is about. The rest may be invalid: it is to go away.
#[derive(Debug, Deserialize)]
struct Head {
    kind: String,
    metadata: Metadata,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
}

fn names_in(files: &[PathBuf]) -> Result<(Kind, Vec<String>), Failure> {
    let mut found: Option<(Kind, Vec<String>)> = None;
    for file in manifest::read(files, Below::Ignored)? {
        let wrong = |reason: String| Failure::Read { path: PathBuf::from(&file.source), reason };
        let heads: Vec<Head> = serde_saphyr::from_multiple(&file.yaml).map_err(|error| wrong(error.to_string()))?;
        for head in heads {
            let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == head.kind).ok_or_else(|| {
                let known = "`ServicePolicy`, `HTTPRoute` and `GRPCRoute` are";
                wrong(format!("`{}` is not a kind that can be deleted: only {known}", head.kind))
            })?;
            let name = names::namespaced(&format!("{}/{}", head.metadata.namespace, head.metadata.name)).map_err(wrong)?;
            let (first, names) = found.get_or_insert_with(|| (kind, Vec::new()));
            // One call deletes all or nothing, and a call is about one kind.
            if *first != kind {
                return Err(wrong(format!(
                    "the files name a `{}` and a `{}`: delete one kind at a time, so that all of it goes or none",
                    first.as_str(),
                    kind.as_str()
                )));
            }
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    found.ok_or_else(|| Failure::Usage("the files name no policy or route to delete".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_of(yaml: &str) -> Result<Vec<String>, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.yaml");
        std::fs::write(&path, yaml).unwrap();
        names_in(&[path]).map(|(_, names)| names)
    }

    #[test]
    fn a_file_whose_rules_are_invalid_still_names_what_to_delete() {
        let yaml = "kind: ServicePolicy\nmetadata: { name: a, namespace: shop, labels: {} }\nspec: { nonsense: [1] }\n---\n\
                    kind: ServicePolicy\nmetadata: { name: b, namespace: shop }\n---\n\
                    kind: ServicePolicy\nmetadata: { name: a, namespace: shop }\n";
        assert_eq!(names_of(yaml).unwrap(), ["shop/a", "shop/b"]);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        let kind = names_of("kind: Service\nmetadata: { name: a, namespace: shop }\n").unwrap_err().to_string();
        assert!(kind.contains("`Service` is not a kind"), "{kind}");
        assert!(names_of("kind: ServicePolicy\nmetadata: { name: a }\n").unwrap_err().to_string().contains("namespace"));
        assert!(names_of("\n").is_err());
    }
}
