//! Policy files: finding and reading them, before anybody looks inside.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use outrider_proto::v1::Manifest;

use crate::failure::Failure;

/// Largest file that the control plane takes, bytes.
const LARGEST: u64 = 4 << 20;

/// What to do about directories in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// Leave them alone.
    Ignored,
    /// Read them too, but for hidden ones.
    Searched,
}

/// Reads what `-f` names: files, directories (their `*.yaml`, `*.yml` and `*.json` files, in order of their names) and
/// `-` for standard input.
///
/// # Errors
/// When something cannot be read, is too large, is not UTF-8, or a directory has no such file.
pub(crate) fn read(paths: &[PathBuf], below: Below) -> Result<Vec<Manifest>, Failure> {
    if paths.iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(Failure::Usage("`-f -` can stand only once: standard input has one end".into()));
    }
    let mut manifests = Vec::new();
    for path in paths {
        if is_stdin(path) {
            manifests.push(text("<stdin>".into(), path, io::stdin().lock())?);
        } else if path.is_dir() {
            for file in files_of(path, below)? {
                manifests.push(open(&file)?);
            }
        } else {
            manifests.push(open(path)?);
        }
    }
    Ok(manifests)
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn open(path: &Path) -> Result<Manifest, Failure> {
    let file = fs::File::open(path).map_err(|error| unreadable(path, &error))?;
    text(path.display().to_string(), path, file)
}

fn text(source: String, path: &Path, from: impl io::Read) -> Result<Manifest, Failure> {
    let mut bytes = Vec::new();
    from.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    let wrong = |reason: String| Failure::Read { path: path.to_owned(), reason };
    if bytes.len() as u64 > LARGEST {
        return Err(wrong("larger than 4 MiB: split it into several files".into()));
    }
    let yaml = String::from_utf8(bytes)
        .map_err(|error| wrong(format!("not UTF-8 text: byte {} does not belong in it", error.utf8_error().valid_up_to() + 1)))?;
    Ok(Manifest { source, yaml })
}

fn files_of(directory: &Path, below: Below) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(here) = waiting.pop() {
        for entry in fs::read_dir(&here).map_err(|error| unreadable(&here, &error))? {
            let entry = entry.map_err(|error| unreadable(&here, &error))?;
            let path = entry.path();
            let is_wanted = path.extension().is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json");
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // Of the entry, not of what it leads to: a link to a directory could lead in circles.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.extend((below == Below::Searched).then_some(path));
            } else if is_wanted && path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    if files.is_empty() {
        let searched = if below == Below::Ignored { " (directories below it are not searched)" } else { "" };
        let reason = format!("the directory has no `*.yaml`, `*.yml` or `*.json` file{searched}");
        return Err(Failure::Read { path: directory.to_owned(), reason });
    }
    Ok(files)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Read { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_in_order_without_hidden_and_foreign_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", "c.json", "notes.txt", ".hidden.yaml"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("d.yaml")).unwrap();
        let read = read(&[dir.path().to_owned()], Below::Ignored).unwrap();
        assert_eq!(read.iter().map(|one| one.yaml.as_str()).collect::<Vec<_>>(), ["a.yml", "b.yaml", "c.json"]);
        fs::write(dir.path().join("d.yaml/e.yaml"), "e.yaml").unwrap();
        assert_eq!(super::read(&[dir.path().to_owned()], Below::Searched).unwrap().len(), 4);
    }

    #[test]
    fn what_cannot_be_a_policy_file_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.yaml");
        let read_one = |path: &PathBuf| read(std::slice::from_ref(path), Below::Ignored);
        let reason = |path: &PathBuf| read_one(path).unwrap_err().to_string();
        assert!(reason(&path).contains("p.yaml"));
        assert!(reason(&dir.path().to_owned()).contains("no `*.yaml`"));
        fs::write(&path, b"kind: \xff").unwrap();
        assert!(reason(&path).contains("byte 7"));
        fs::write(&path, vec![b' '; 4 << 20]).unwrap();
        assert!(read_one(&path).is_ok());
        fs::write(&path, vec![b' '; (4 << 20) + 1]).unwrap();
        assert!(reason(&path).contains("4 MiB"));
        assert!(read(&["-".into(), "-".into()], Below::Ignored).unwrap_err().to_string().contains("once"));
    }
}
