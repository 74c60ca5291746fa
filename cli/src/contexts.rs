//! Control planes that this user logged in to: `contexts.yaml`, with keys in it, for nobody else to read.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// All contexts of this user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Contexts {
    /// The one that is used when none is named.
    pub(crate) current: Option<String>,
    /// By name.
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// A control plane, and who this user is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Context {
    /// `HOST:PORT` of its operators' port.
    pub(crate) control_plane: String,
    /// SPIFFE ID in the certificate.
    pub(crate) identity: String,
    /// What the role was when the certificate was issued.
    pub(crate) role: String,
    /// Trust domain of the mesh.
    pub(crate) trust_domain: String,
    /// Its trust anchors: DER, base64.
    pub(crate) roots: Vec<String>,
    /// Chain, leaf first: DER, base64.
    pub(crate) certificate: Vec<String>,
    /// Key of the leaf: PKCS#8, base64.
    pub(crate) key: String,
    /// When the certificate came, Unix seconds.
    pub(crate) obtained: i64,
    /// When it ends, Unix seconds.
    pub(crate) expires: i64,
}

impl Context {
    /// Whether the certificate is past half of its life: then it is renewed when it is used.
    pub(crate) fn is_due(&self, now: i64) -> bool {
        now >= self.obtained + (self.expires - self.obtained) / 2
    }
}

impl Contexts {
    /// Where they are kept.
    ///
    /// # Errors
    /// When the environment names no place.
    pub(crate) fn path() -> Result<PathBuf, Failure> {
        let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
        let nowhere = || Failure::Usage("neither XDG_CONFIG_HOME nor HOME says where contexts are kept".to_owned());
        Ok(home.ok_or_else(nowhere)?.join("outrider/contexts.yaml"))
    }

    /// Reads them; none when there is no file.
    ///
    /// # Errors
    /// When the file is open to others, or not what was written.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |reason: String| Failure::Read { path: path.to_owned(), reason };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(error.to_string())),
        };
        let mode = fs::metadata(path).map_err(|error| failed(error.to_string()))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(failed(format!("it holds private keys and is open to others (mode {mode:o}): run `chmod 600` on it")));
        }
        serde_saphyr::from_str(&text).map_err(|error| failed(error.to_string()))
    }

    /// Replaces the file, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_saphyr::to_string(self).map_err(|error| Failure::Render(error.to_string()))?;
        let write = || {
            let dir = path.parent().unwrap_or(Path::new("."));
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let fresh = path.with_extension("new");
            let _ = fs::remove_file(&fresh);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, path)
        };
        write().map_err(|error: io::Error| Failure::Write { path: path.to_owned(), reason: error.to_string() })
    }

    /// The context of this name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn find(&self, name: &str) -> Result<&Context, Failure> {
        self.contexts.get(name).ok_or_else(|| Failure::NotFound {
            kind: "context",
            name: name.to_owned(),
            nearest: crate::names::nearest(name, self.contexts.keys().map(String::as_str)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context {
            control_plane: "mesh.example:15180".into(),
            identity: "spiffe://mesh.internal/operator/ann".into(),
            role: "editor".into(),
            trust_domain: "mesh.internal".into(),
            roots: vec!["AA==".into()],
            certificate: vec!["AA==".into()],
            key: "AA==".into(),
            obtained: 1000,
            expires: 2000,
        }
    }

    #[test]
    fn contexts_survive_their_file_which_is_for_the_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outrider/contexts.yaml");
        assert_eq!(Contexts::read(&path).unwrap(), Contexts::default());
        let all = Contexts { current: Some("ann@mesh".into()), contexts: [("ann@mesh".to_owned(), context())].into() };
        all.write(&path).unwrap();
        assert_eq!(Contexts::read(&path).unwrap(), all);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(all.find("ann@mesh").is_ok() && all.find("bob@mesh").is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Contexts::read(&path).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn a_certificate_is_renewed_from_half_of_its_life_on() {
        assert!(!context().is_due(1499) && context().is_due(1500));
    }
}
