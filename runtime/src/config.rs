//! Layered settings: a YAML file below, flags and environment above. Unknown keys are errors.

use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

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
    if let (Some(merged), serde_json::Value::Object(above)) = (merged.as_object_mut(), above) {
        for (key, value) in above {
            let empty = value.as_array().is_some_and(Vec::is_empty);
            if !value.is_null() && !empty {
                merged.insert(key, value);
            }
        }
    }
    serde_json::from_value(merged).map_err(|error| parse(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        address: Option<String>,
        ttl: Option<u32>,
    }

    fn file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("outrider-config-{}-{name}.yaml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn flags_win_over_the_file() {
        let path = file("layers", "address: a\nttl: 5\n");
        let settings = layered(Some(&path), Settings { address: Some("b".into()), ttl: None }).unwrap();
        assert_eq!(settings, Settings { address: Some("b".into()), ttl: Some(5) });
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_position() {
        let path = file("unknown", "address: a\ntttl: 5\n");
        let error = layered(Some(&path), Settings::default()).unwrap_err().to_string();
        assert!(error.contains("tttl") && error.contains("line 2"), "{error}");
    }
}
