//! Layered settings: a YAML file below, flags and environment above. Unknown keys are errors.

use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// A settings file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read settings file `{}`: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// It is not what the program understands.
    #[error("settings file `{}`: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
}

/// Reads `file`, if any, and lays what is set in `flags` over it.
///
/// # Errors
/// When the file cannot be read, is not YAML, or has keys that `T` does not know.
pub fn layered<T: Serialize + DeserializeOwned>(file: Option<&Path>, flags: T) -> Result<T, ConfigError> {
    let Some(path) = file else { return Ok(flags) };
    let parse = |reason: String| ConfigError::Parse { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|reason| ConfigError::Read { path: path.to_owned(), reason })?;
    let below: T = serde_saphyr::from_str(&text).map_err(|error| parse(error.to_string()))?;
    let mut merged = serde_json::to_value(&below).map_err(|error| parse(error.to_string()))?;
    let above = serde_json::to_value(&flags).map_err(|error| parse(error.to_string()))?;
    lay(&mut merged, above);
    serde_json::from_value(merged).map_err(|error| parse(error.to_string()))
}

/// Lays what is set above over what is below, group by group.
fn lay(below: &mut Value, above: Value) {
    let (Some(below), Value::Object(above)) = (below.as_object_mut(), above) else { return };
    for (key, value) in above {
        let empty = value.as_array().is_some_and(Vec::is_empty);
        match below.get_mut(&key) {
            Some(group) if group.is_object() && value.is_object() => lay(group, value),
            _ if value.is_null() || empty => {}
            _ => {
                below.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        address: Option<String>,
        ttl: Option<u32>,
        group: Group,
    }

    #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Group {
        list: Vec<u32>,
        word: Option<String>,
    }

    fn file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("outrider-config-{}-{name}.yaml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn flags_win_over_the_file() {
        let path = file("layers", "address: a\nttl: 5\n");
        let settings = layered(Some(&path), Settings { address: Some("b".into()), ..Settings::default() }).unwrap();
        assert_eq!(settings, Settings { address: Some("b".into()), ttl: Some(5), ..Settings::default() });
    }

    #[test]
    fn flags_of_a_group_win_one_by_one() {
        let path = file("groups", "group: { list: [1, 2], word: a }\n");
        let flags = Settings { group: Group { word: Some("b".into()), ..Group::default() }, ..Settings::default() };
        let settings = layered(Some(&path), flags).unwrap();
        assert_eq!(settings.group, Group { list: vec![1, 2], word: Some("b".into()) });
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_position() {
        let path = file("unknown", "address: a\ntttl: 5\n");
        let error = layered(Some(&path), Settings::default()).unwrap_err().to_string();
        assert!(error.contains("tttl") && error.contains("line 2"), "{error}");
    }
}
