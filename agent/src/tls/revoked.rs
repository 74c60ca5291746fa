//! Who is no longer believed, whatever their certificates say.

use std::collections::HashMap;

use outrider_policy::SpiffeId;
use outrider_proto::v1::{RevocationList, revocation::Subject};

use super::LeafError;

/// Most revocations of a list.
const MOST: usize = 4096;

/// The list in force.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Revoked {
    serials: HashMap<String, String>,
    identities: HashMap<SpiffeId, String>,
}

impl Revoked {
    /// Reads a list: all of it, since a reading that leaves somebody out would let them in.
    pub(super) fn read(list: &RevocationList) -> Result<Self, String> {
        if list.revocations.len() > MOST {
            return Err(format!("{} revocations, at most {MOST} are taken", list.revocations.len()));
        }
        let mut read = Self::default();
        for revocation in &list.revocations {
            let reason = revocation.reason.clone();
            match &revocation.subject {
                Some(Subject::Serial(serial)) => drop(read.serials.insert(serial.clone(), reason)),
                Some(Subject::Identity(identity)) => {
                    let identity = identity.parse().map_err(|error| format!("`{identity}`: {error}"))?;
                    read.identities.insert(identity, reason);
                }
                None => return Err("a revocation of a kind that this agent does not know".to_owned()),
            }
        }
        Ok(read)
    }

    /// # Errors
    /// When the certificate of this serial, or the identity, is revoked.
    pub(super) fn check(&self, id: &SpiffeId, serial: &str) -> Result<(), LeafError> {
        let why = |reason: &str| if reason.is_empty() { String::new() } else { format!(": {reason}") };
        if let Some(reason) = self.identities.get(id) {
            return Err(LeafError::Revoked(format!("the identity `{id}` was revoked{}", why(reason))));
        }
        match self.serials.get(serial) {
            Some(reason) => Err(LeafError::Revoked(format!("the certificate {serial} of `{id}` was revoked{}", why(reason)))),
            None => Ok(()),
        }
    }
}
