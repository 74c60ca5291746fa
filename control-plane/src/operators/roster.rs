//! Who is an operator now. The store is what counts; this is told when it changes, so that connections can end.

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use outrider_policy::{SpiffeId, TrustDomain};
use tokio::sync::watch;

use super::Role;
use crate::store::{Store, StoreError};

/// An operator's name: lower-case letters, digits, `-` and `.`, at most 63.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OperatorName(String);

impl FromStr for OperatorName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        let ends = text.bytes().next().into_iter().chain(text.bytes().last());
        let good = (1..=63).contains(&text.len())
            && text.bytes().all(inside)
            && ends.into_iter().all(|byte| byte.is_ascii_alphanumeric())
            && !text.contains("..");
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err("a name is of lower-case letters, digits, `-` and `.`, at most 63".to_owned())
        }
    }
}

impl OperatorName {
    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The identity in the operator's certificate: none that a workload can have.
    pub(crate) fn identity(&self, trust_domain: &TrustDomain) -> Option<SpiffeId> {
        format!("spiffe://{trust_domain}/operator/{}", self.0).parse().ok()
    }

    /// Whom an identity names, if that is an operator.
    pub(crate) fn of(identity: &SpiffeId) -> Option<Self> {
        identity.path().strip_prefix("/operator/")?.parse().ok()
    }
}

type Roles = BTreeMap<String, String>;

/// The operators. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Roster {
    store: Store,
    roles: watch::Sender<Arc<Roles>>,
}

impl Roster {
    /// The operators in this store.
    pub(crate) fn new(store: Store) -> Self {
        Self { store, roles: watch::Sender::default() }
    }

    /// Looks again: another replica may have changed something.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let roles: Roles = self.store.operators().await?.into_iter().map(|row| (row.name, row.role)).collect();
        self.roles.send_if_modified(|before| {
            let is_new = **before != roles;
            if is_new {
                *before = Arc::new(roles);
            }
            is_new
        });
        Ok(())
    }

    /// The role of an operator, as the store has it now.
    pub(crate) async fn role(&self, name: &OperatorName) -> Result<Option<Role>, StoreError> {
        Ok(self.store.operator_role(name.as_str()).await?.and_then(|role| role.parse().ok()))
    }

    /// Ends when this operator is removed, or gets another role.
    pub(crate) async fn changed(self, name: OperatorName) {
        let mut roles = self.roles.subscribe();
        let first = roles.borrow_and_update().get(name.as_str()).cloned();
        while roles.changed().await.is_ok() {
            if roles.borrow_and_update().get(name.as_str()) != first.as_ref() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_identity_is_never_a_workloads() {
        let domain = TrustDomain::new("mesh.internal").unwrap();
        let ann: OperatorName = "ann".parse().unwrap();
        let identity = ann.identity(&domain).unwrap();
        assert_eq!(identity.as_str(), "spiffe://mesh.internal/operator/ann");
        assert!(identity.account().is_none() && OperatorName::of(&identity) == Some(ann));
        let web = SpiffeId::new("spiffe://mesh.internal/ns/shop/sa/web").unwrap();
        assert_eq!(OperatorName::of(&web), None);
        for bad in ["", "Ann", "a/b", "..", "a..b", "-a", "a.", "a b", "ä", &"a".repeat(64), "../ns/shop/sa/web"] {
            assert!(bad.parse::<OperatorName>().is_err(), "{bad}");
        }
    }
}
