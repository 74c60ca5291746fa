//! The file of the access log, which may be renamed under the agent: then the next lines begin a new one.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// A file that lines are appended to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: append(path)? })
    }

    /// Opens what stands at the path now, if that is another file or none. When it cannot be opened the old one goes on.
    fn follow(&mut self) {
        let is_same = |here: Metadata, open: Metadata| (here.dev(), here.ino()) == (open.dev(), open.ino());
        let current = std::fs::metadata(&self.path).and_then(|here| Ok(is_same(here, self.file.metadata()?)));
        if !current.unwrap_or(false)
            && let Ok(file) = append(&self.path)
        {
            self.file = file;
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    /// One block of whole lines: never parted between two files.
    fn write_all(&mut self, block: &[u8]) -> io::Result<()> {
        self.follow();
        self.file.write_all(block)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_to_the_file_that_stands_at_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let mut log = LogFile::open(&path).unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        log.write_all(b"one\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        log.write_all(b"two\n").unwrap();
        assert_eq!((read(&old).as_str(), read(&path).as_str()), ("one\n", "two\n"));
        std::fs::remove_file(&path).unwrap();
        log.write_all(b"three\n").unwrap();
        assert_eq!(read(&path), "three\n");
        // Cut where it stands: appending begins anew.
        OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        log.write_all(b"four\n").unwrap();
        assert_eq!(read(&path), "four\n");
        // Nothing can be opened in its place: what is open goes on.
        std::fs::rename(&path, &old).unwrap();
        std::fs::create_dir(&path).unwrap();
        log.write_all(b"five\n").unwrap();
        assert_eq!(read(&old), "four\nfive\n");
    }
}
