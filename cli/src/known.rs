//! The control plane that an agent of this user joined last: where it is, and whose certificates it issues. Kept beside the
//! agent's own state, so that it starts without the control plane, and notices when that was made anew.

use std::{
    fs,
    path::{Path, PathBuf},
};

use outrider_agent::StateDir;
use outrider_proto::v1::StatusResponse;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Name of the file in the agent's state directory.
const FILE: &str = "control-plane.json";

/// A control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// `HOST:PORT`.
    pub(crate) address: String,
    /// SHA-256 of the root's public key in hex; none when only the address is known.
    pub(crate) root: Option<String>,
    /// All that it ever had: a mesh stays the same when its root changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) roots: Vec<String>,
}

impl Known {
    /// One of which only the address is known.
    pub(crate) fn at(address: &str) -> Self {
        Self { address: address.to_owned(), root: None, roots: Vec::new() }
    }

    /// The one that says this of itself.
    pub(crate) fn of(status: &StatusResponse) -> Self {
        let root = status.certificate_authorities.iter().find(|ca| ca.role == "root");
        let roots = status.root_history.clone();
        Self { address: status.address.clone(), root: root.map(|ca| ca.spki_sha256.clone()), roots }
    }

    /// It was named by its address, and is not the one on this machine.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.root.is_none()
    }

    /// What was kept in this state directory.
    pub(crate) fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(state_dir.join(FILE)).ok()?).ok()
    }

    /// Keeps it. A directory that the agent could open can be written.
    pub(crate) fn keep(&self, state_dir: &Path) -> Result<(), Failure> {
        let mut new = self.clone();
        if new.root.is_none() {
            new.root = Self::read(state_dir).filter(|before| before.address == self.address).and_then(|before| before.root);
        }
        let path: PathBuf = state_dir.join(FILE);
        let text = serde_json::to_string(&new).map_err(|error| Failure::Render(error.to_string()))?;
        let fresh = path.with_extension("new");
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
        written.map_err(|error| Failure::Write { path, reason: error.to_string() })
    }

    /// Forgets what the agent got from a control plane with another root: nobody in this mesh would believe it, and it would
    /// believe nobody.
    pub(crate) fn forget_others(&self, state_dir: &Path) -> Result<(), Failure> {
        let before = Self::read(state_dir).and_then(|before| before.root);
        let is_own = |root: &String| self.root.as_ref() == Some(root) || self.roots.contains(root);
        if self.root.is_some() && before.is_some_and(|before| !is_own(&before)) {
            tracing::warn!(dir = %state_dir.display(), "the control plane has another root than before: joining again");
            StateDir::forget(state_dir).map_err(|error| Failure::Agent(error.to_string()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_root_makes_an_agent_forget() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("agent");
        drop(StateDir::open(&state).unwrap());
        let kept = || state.join("identity").exists();
        fs::write(state.join("identity"), "x").unwrap();
        let with = |root: &str| Known { address: "127.0.0.1:1".into(), root: Some(root.into()), roots: Vec::new() };
        with("a").forget_others(&state).unwrap();
        assert!(kept(), "nothing was known before");
        with("a").keep(&state).unwrap();
        Known::at("127.0.0.1:1").keep(&state).unwrap();
        assert_eq!(Known::read(&state), Some(with("a")), "the same, named by its address only");
        with("a").forget_others(&state).unwrap();
        assert!(kept());
        Known { roots: vec!["a".into(), "b".into()], ..with("b") }.forget_others(&state).unwrap();
        assert!(kept(), "the root of the same mesh was changed");
        with("b").forget_others(&state).unwrap();
        assert!(!kept());
        Known::at("mesh.example:15110").keep(&state).unwrap();
        assert!(Known::read(&state).is_some_and(|known| known.is_elsewhere()));
    }
}
