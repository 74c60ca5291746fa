//! `PeerAuthentication`: whether plaintext is let in.
//!
//! In Istio a mode that is not set is that of the namespace, then that of the mesh, then `PERMISSIVE`. Here the closest
//! policy says it all, so what is inherited is written out.

use std::collections::BTreeMap;

use super::document::Authenticated;
use super::names::Names;
use super::place::{Place, Report};
use super::target::{Reach, Relation};
use crate::resource::{Mtls, MtlsMode, ServicePolicy, Spec};

/// A document, the file it is from, and what it sets.
struct Set<'a, 'n> {
    file: usize,
    document: &'a Authenticated<'n>,
    mode: Option<MtlsMode>,
    ports: BTreeMap<u16, Option<MtlsMode>>,
}

/// The policies of all documents.
pub(super) fn policies(
    documents: &[(usize, &Authenticated<'_>)],
    names: &mut Names,
    reports: &mut [Report<'_>],
) -> Vec<ServicePolicy> {
    let mut sets: Vec<Set<'_, '_>> = Vec::new();
    for (file, document) in documents {
        let Some(report) = reports.get_mut(*file) else { continue };
        let set = read(*file, document, report);
        refuse_a_second_one(&set, &sets, report);
        sets.push(set);
    }
    let unset = sets.is_empty() || !sets.iter().any(|set| set.document.target.is_mesh() && set.mode.is_some());
    if let (true, Some(report)) = (unset, reports.first_mut()) {
        let text = "no `PeerAuthentication` of these files is for the whole mesh: Istio would let plaintext in where none sets a mode, Outrider does not";
        report.note_file(text, "add one of the mode `PERMISSIVE` to keep that");
    }
    let mut policies = Vec::new();
    for set in &sets {
        let Some(report) = reports.get_mut(set.file) else { continue };
        policies.extend(policy(set, &sets, names, report));
    }
    policies
}

fn read<'a, 'n>(file: usize, document: &'a Authenticated<'n>, report: &mut Report<'_>) -> Set<'a, 'n> {
    let spec = document.spec.as_ref();
    let mtls = spec.and_then(|spec| spec.field("mtls"));
    let mode = mtls.and_then(|mtls| mode(&mtls, report));
    let mut ports = BTreeMap::new();
    if let Some(field) = spec.and_then(|spec| spec.field("portLevelMtls")) {
        let entries = field.entries(report);
        if !entries.is_empty() && document.target.labels.is_empty() {
            report.refuse(field.invalid("ports are set for workloads that `selector` names"));
        }
        for (key, place) in entries {
            match key.parse::<u16>().ok().filter(|port| *port != 0 && port.to_string() == key) {
                Some(port) => {
                    ports.insert(port, self::mode(&place, report));
                }
                None => report.refuse(place.invalid("it is not a port from 1 to 65535")),
            }
        }
        if !ports.is_empty() {
            report.note(
                field
                    .remark("Istio means the ports of the workload, Outrider those of the service")
                    .help("change them where the two differ"),
            );
        }
    }
    if !document.target.services.is_empty() {
        report.refuse(document.place.remark("a `PeerAuthentication` has no `targetRefs`"));
    }
    Set { file, document, mode, ports }
}

/// The mode of `mtls` or of a port; none where it is inherited.
fn mode(mtls: &Place<'_>, report: &mut Report<'_>) -> Option<MtlsMode> {
    mtls.expect_fields(&["mode"], report);
    let field = mtls.field("mode")?;
    match field.text(report)? {
        "STRICT" => return Some(MtlsMode::Strict),
        "PERMISSIVE" => return Some(MtlsMode::Permissive),
        "UNSET" => {}
        "DISABLE" => report.refuse(
            field
                .not_kept("agents always accept mutual TLS, and a caller that proves its identity would have one")
                .help("`PERMISSIVE` also lets plaintext in"),
        ),
        _ => report.refuse(field.invalid("it is `UNSET`, `DISABLE`, `PERMISSIVE` or `STRICT`")),
    }
    None
}

/// Of several at one level Istio takes the oldest, which files do not tell.
fn refuse_a_second_one(set: &Set<'_, '_>, before: &[Set<'_, '_>], report: &mut Report<'_>) {
    let target = &set.document.target;
    let clash = before.iter().find(|other| {
        let theirs = &other.document.target;
        let level = theirs.is_wide() == target.is_wide() && theirs.reach == target.reach;
        level && theirs.relation_to(target) != Relation::Apart
    });
    if let Some(other) = clash {
        let name = &other.document.name;
        let why = format!("`{name}` may select the same workloads, and Istio takes the older of the two");
        let place = set.document.spec.clone().unwrap_or_else(|| set.document.place.clone());
        report.refuse(place.not_kept(&why).help("leave one of them, or make their labels exclude each other"));
    }
}

fn policy(set: &Set<'_, '_>, all: &[Set<'_, '_>], names: &mut Names, report: &mut Report<'_>) -> Option<ServicePolicy> {
    let Set { document, mode, ports, .. } = set;
    let target = &document.target;
    if target.reach == Reach::Mesh && !target.is_wide() {
        let place = document.spec.clone().unwrap_or_else(|| document.place.clone());
        report.note(place.remark("is left out: Istio does not look at labels in the root namespace"));
        return None;
    }
    if mode.is_none() && ports.is_empty() {
        return None;
    }
    // a mode that is inherited is the one of the next level that sets one
    let wide = |reach: &Reach| {
        all.iter()
            .filter(|other| other.document.target.is_wide() && other.document.target.reach == *reach)
            .find_map(|other| other.mode)
    };
    let inherited = || wide(&target.reach).or_else(|| wide(&Reach::Mesh)).unwrap_or(MtlsMode::Permissive);
    let mode = mode.unwrap_or_else(inherited);
    let ports = ports.iter().map(|(port, own)| (*port, own.unwrap_or(mode))).collect();
    let metadata = names.metadata(&document.place, target, &document.name, &document.labels, report)?;
    let spec = Spec { mtls: Some(Mtls { mode, ports }), ..target.spec(report, &document.place)? };
    Some(super::resource(metadata, spec))
}
