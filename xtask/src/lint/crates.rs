//! Rules about crates: who may know whom, what must not come into the build, and that all of them forbid unsafe code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::Context as _;
use serde::Deserialize;

use super::Findings;
use crate::command;

/// What `cargo metadata` says, as far as the rules read it.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    manifest_path: String,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    /// Absent for a normal dependency; `dev` or `build`.
    kind: Option<String>,
}

/// A crate of ours and the crates of ours it must not know, in whatever way.
const BOUNDARIES: [(&str, &[&str]); 6] = [
    ("outrider-proto", &["outrider-policy", "outrider-runtime", "outrider-agent", "outrider-control-plane", "outrider"]),
    ("outrider-policy", &["outrider-runtime", "outrider-agent", "outrider-control-plane", "outrider"]),
    ("outrider-runtime", &["outrider-proto", "outrider-policy", "outrider-agent", "outrider-control-plane", "outrider"]),
    ("outrider-agent", &["outrider-control-plane", "outrider"]),
    ("outrider-control-plane", &["outrider-agent", "outrider"]),
    ("xtask", &["outrider-proto", "outrider-policy", "outrider-runtime", "outrider-agent", "outrider-control-plane", "outrider"]),
];

/// What the pure core must not reach, even through others: it has no sockets, no tasks, no cluster.
const IMPURE: [&str; 9] = ["tokio", "async-std", "mio", "socket2", "hyper", "h2", "tonic", "kube", "sqlx"];

/// What must not be built, and why.
const BANNED: [(&str, &str); 6] = [
    ("ring", "one crypto provider: aws-lc-rs"),
    ("openssl-sys", "one TLS stack: rustls"),
    ("native-tls", "one TLS stack: rustls"),
    ("reqwest", "fetches what documents name when a dependency turns it on"),
    ("serde_yaml", "unmaintained; one YAML parser: serde-saphyr"),
    ("rsa", "RUSTSEC-2023-0071 has no fix"),
];

/// Checks the workspace's crates and what they bring along.
pub(super) fn check(root: &Path, findings: &mut Findings) -> anyhow::Result<()> {
    let json = command::output(command::cargo().args(["metadata", "--format-version", "1", "--locked"]).current_dir(root))?;
    let metadata: Metadata = serde_json::from_str(&json).context("cannot read what cargo metadata says")?;
    boundaries(&metadata, findings);
    safety(root, &metadata, findings)?;
    // `cargo tree` knows which optional dependencies are really built; the lock file does not.
    let tree = command::output(
        command::cargo()
            .args(["tree", "--locked", "--workspace", "--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}"])
            .current_dir(root),
    )?;
    banned(&tree, findings);
    Ok(())
}

fn boundaries(metadata: &Metadata, findings: &mut Findings) {
    let names: BTreeMap<&str, &str> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
    let name_of = |id: &str| names.get(id).copied().unwrap_or_default();
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    for member in &metadata.workspace_members {
        let Some(node) = nodes.get(member.as_str()) else { continue };
        let name = name_of(member);
        let foreign = BOUNDARIES.iter().find(|(of, _)| *of == name).map(|(_, foreign)| *foreign).unwrap_or_default();
        for dependency in node.deps.iter().map(|dependency| name_of(&dependency.pkg)).filter(|name| foreign.contains(name)) {
            findings.error(
                "boundary",
                name,
                &format!("must not depend on `{dependency}`: ARCHITECTURE.md says who may know whom"),
            );
        }
        if name == "outrider-policy" {
            let reached = reached(&nodes, member);
            for impure in reached.iter().map(|id| name_of(id)).filter(|name| IMPURE.contains(name)) {
                findings.error("boundary", name, &format!("reaches `{impure}`: the core has no input, output or clock"));
            }
        }
    }
}

/// Everything a package needs to run, itself left out.
fn reached<'a>(nodes: &BTreeMap<&'a str, &'a Node>, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut waiting = vec![from];
    while let Some(node) = waiting.pop().and_then(|id| nodes.get(id)) {
        for dependency in &node.deps {
            let is_normal = dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
            if is_normal && reached.insert(dependency.pkg.as_str()) {
                waiting.push(dependency.pkg.as_str());
            }
        }
    }
    reached
}

fn safety(root: &Path, metadata: &Metadata, findings: &mut Findings) -> anyhow::Result<()> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    if !has_line(&read(&root.join("Cargo.toml"))?, "[workspace.lints.rust]", "unsafe_code = \"forbid\"") {
        findings.error("unsafe", "Cargo.toml", "`[workspace.lints.rust]` must say `unsafe_code = \"forbid\"`");
    }
    for package in metadata.packages.iter().filter(|package| metadata.workspace_members.contains(&package.id)) {
        let manifest = read(Path::new(&package.manifest_path))?;
        if !has_line(&manifest, "[lints]", "workspace = true") {
            findings.error("unsafe", &package.name, "its Cargo.toml must take the workspace's lints: `[lints] workspace = true`");
        }
    }
    Ok(())
}

/// Whether a section of a TOML file has this line.
fn has_line(toml: &str, section: &str, wanted: &str) -> bool {
    let mut lines = toml.lines().map(str::trim).skip_while(|line| *line != section).skip(1);
    lines.by_ref().take_while(|line| !line.starts_with('[')).any(|line| line == wanted)
}

fn banned(tree: &str, findings: &mut Findings) {
    let built: BTreeSet<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for (name, why) in BANNED {
        if built.contains(name) {
            findings.error(
                "ban",
                name,
                &format!("is built ({why}): `cargo tree --workspace -e normal,build,dev -i {name}` shows who wants it"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crate, and what it depends on in which way.
    type Edges<'a> = (&'a str, &'a [(&'a str, Option<&'a str>)]);

    fn metadata(edges: &[Edges<'_>]) -> Metadata {
        let package = |name: &&str| Package { id: (*name).into(), name: (*name).into(), manifest_path: String::new() };
        let dependency = |(to, kind): &(&str, Option<&str>)| Dependency {
            pkg: (*to).into(),
            dep_kinds: vec![DependencyKind { kind: kind.map(str::to_owned) }],
        };
        let names: BTreeSet<&str> =
            edges.iter().flat_map(|(from, to)| std::iter::once(*from).chain(to.iter().map(|one| one.0))).collect();
        Metadata {
            packages: names.iter().map(package).collect(),
            workspace_members: edges.iter().map(|(from, _)| (*from).to_owned()).collect(),
            resolve: Resolve {
                nodes: edges
                    .iter()
                    .map(|(from, to)| Node { id: (*from).into(), deps: to.iter().map(dependency).collect() })
                    .collect(),
            },
        }
    }

    fn errors(edges: &[Edges<'_>]) -> Vec<String> {
        let mut findings = Findings::default();
        boundaries(&metadata(edges), &mut findings);
        findings.errors
    }

    #[test]
    fn crates_that_must_not_know_each_other_are_named() {
        assert!(errors(&[("outrider-agent", &[("outrider-control-plane", Some("dev"))])])[0].contains("outrider-control-plane"));
        assert!(errors(&[("outrider", &[("outrider-control-plane", None), ("outrider-agent", None)])]).is_empty());
    }

    #[test]
    fn the_core_must_not_reach_sockets_even_through_others() {
        let edges: &[Edges<'_>] = &[("outrider-policy", &[("cel", None)]), ("cel", &[("tokio", None)])];
        assert!(errors(edges)[0].contains("reaches `tokio`"));
        assert!(errors(&[("outrider-policy", &[("tokio", Some("dev"))])]).is_empty());
    }

    #[test]
    fn banned_crates_count_only_when_they_are_built() {
        let mut findings = Findings::default();
        banned("rustls v0.23.46\nspring v1.0.0\n", &mut findings);
        assert!(findings.errors.is_empty());
        banned("ring v0.17.0\nring v0.17.0 (*)\n", &mut findings);
        assert_eq!(findings.errors.len(), 1);
    }

    #[test]
    fn a_line_counts_only_in_its_section() {
        assert!(has_line("[lints]\nworkspace = true\n", "[lints]", "workspace = true"));
        assert!(!has_line("[lints]\n\n[dependencies]\nworkspace = true\n", "[lints]", "workspace = true"));
    }
}
