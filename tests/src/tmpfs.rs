//! A file system of a size that can be filled, and that can be mounted read-only. Needs root.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A mounted file system in memory; unmounted at the end.
#[derive(Debug)]
pub struct Tmpfs {
    at: PathBuf,
}

fn run(arguments: &[&str], at: &Path) {
    let output = Command::new("mount").args(arguments).arg(at).output().expect("mount");
    assert!(output.status.success(), "mount {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Tmpfs {
    /// Mounts one of this size, as `mount` reads it, on a directory that it makes.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).expect("a directory");
        run(&["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"], at);
        Self { at: at.to_owned() }
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// Fills it to the last byte.
    ///
    /// # Panics
    /// When that does not fail in the end.
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a file");
        for _ in 0..1 << 20 {
            if file.write_all(&[0; 4096]).is_err() {
                return;
            }
        }
        panic!("it does not fill");
    }

    /// Gives back what was filled.
    ///
    /// # Panics
    /// When it was not.
    pub fn empty(&self) {
        std::fs::remove_file(self.filler()).expect("the filler");
    }

    /// Nobody can write to it from now on; nobody may have a file of it open for writing.
    ///
    /// # Panics
    /// When somebody has.
    pub fn read_only(&self) {
        run(&["-o", "remount,ro"], &self.at);
    }

    /// It can be written to again.
    ///
    /// # Panics
    /// When the system does not let us.
    pub fn read_write(&self) {
        run(&["-o", "remount,rw"], &self.at);
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}
