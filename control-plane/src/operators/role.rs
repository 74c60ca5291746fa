//! What each role may do: one table of all calls.

use std::str::FromStr;

/// What an operator may do. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Looks.
    Viewer,
    /// Changes policies.
    Editor,
    /// Gives out identities and rights.
    Admin,
}

impl Role {
    /// The name in the store, on the wire and in the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Editor => "editor",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Viewer, Self::Editor, Self::Admin].into_iter().find(|role| role.as_str() == text).ok_or(())
    }
}

/// Whether a call changes anything: then it is put on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Looks,
    Changes,
}

/// A call of `Admin`, who may make it, and what it does.
pub(super) struct Call {
    pub(super) name: &'static str,
    pub(super) role: Role,
    pub(super) effect: Effect,
}

const fn call(name: &'static str, role: Role, effect: Effect) -> Call {
    Call { name, role, effect }
}

use Effect::{Changes, Looks};
use Role::{Admin, Editor, Viewer};

/// Every call. One that is not here is refused to everybody.
const CALLS: &[Call] = &[
    call("Apply", Editor, Changes),
    call("Delete", Editor, Changes),
    call("Canary", Editor, Changes),
    call("Rollback", Editor, Changes),
    call("Replay", Viewer, Looks),
    call("ListRevisions", Viewer, Looks),
    call("ListPolicies", Viewer, Looks),
    call("ListServices", Viewer, Looks),
    call("ListAgents", Viewer, Looks),
    call("WatchRollout", Viewer, Looks),
    call("Explain", Viewer, Looks),
    call("ListDecisions", Viewer, Looks),
    call("ListCertificates", Viewer, Looks),
    call("Status", Viewer, Looks),
    call("ListOperators", Viewer, Looks),
    call("ListAudit", Viewer, Looks),
    call("CreateToken", Admin, Changes),
    call("RevokeTokens", Admin, Changes),
    call("RotateCertificates", Admin, Changes),
    call("Revoke", Admin, Changes),
    call("Unrevoke", Admin, Changes),
    call("ListRevocations", Viewer, Looks),
    call("GetCaRotation", Viewer, Looks),
    call("RotateCa", Admin, Changes),
    call("ListRoutes", Viewer, Looks),
    call("CreateOperator", Admin, Changes),
    call("RemoveOperator", Admin, Changes),
];

/// The call of this name.
pub(super) fn find(name: &str) -> Option<&'static Call> {
    CALLS.iter().find(|call| call.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    #[test]
    fn every_call_of_the_wire_has_a_role() {
        let files = prost_types::FileDescriptorSet::decode(outrider_proto::FILE_DESCRIPTOR_SET).unwrap();
        let services = files.file.iter().flat_map(|file| &file.service);
        let admin = services.clone().find(|service| service.name() == "Admin").unwrap();
        let table: BTreeSet<&str> = CALLS.iter().map(|call| call.name).collect();
        let wire: BTreeSet<&str> = admin.method.iter().map(|method| method.name()).collect();
        assert_eq!(table, wire, "each call of the wire has a role, and no others");
        assert_eq!(CALLS.len(), table.len(), "each once");
    }

    #[test]
    fn the_page_for_operators_gives_every_call_the_role_that_it_has() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operators.md")).unwrap();
        let said = page.lines().filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
            let name = cells.first()?.strip_prefix('`')?.strip_suffix('`')?;
            let role = cells.get(1)?.parse::<Role>().ok()?;
            name.starts_with(|first: char| first.is_ascii_uppercase()).then(|| (name.to_owned(), role.as_str()))
        });
        let mut said: Vec<(String, &str)> = said.collect();
        let mut table: Vec<(String, &str)> = CALLS.iter().map(|call| (call.name.to_owned(), call.role.as_str())).collect();
        said.sort();
        table.sort();
        assert_eq!(said, table);
    }

    #[test]
    fn a_viewer_changes_nothing_and_only_an_admin_gives_out_identities() {
        for call in CALLS {
            assert!(call.effect == Looks || call.role > Viewer, "{}", call.name);
            let gives = ["Token", "Operator", "Certificates"].iter().any(|word| call.name.contains(word));
            assert!(call.effect == Looks || !gives || call.role == Admin, "{}", call.name);
        }
        assert!("root".parse::<Role>().is_err() && "admin".parse() == Ok(Admin));
    }
}
