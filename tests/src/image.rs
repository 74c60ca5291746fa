//! A file system on an image, which fails as a disk does: it turns read-only under whoever has files of it open. Needs root, a loop
//! device and ext4.

use std::{
    fs::{File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A mounted image; unmounted at the end.
#[derive(Debug)]
pub struct Image {
    at: PathBuf,
    image: PathBuf,
}

fn succeeds(program: &str, arguments: &[&str], at: &Path) -> bool {
    Command::new(program).args(arguments).arg(at).output().is_ok_and(|output| output.status.success())
}

impl Image {
    /// Mounts one of 16 MB on a directory that it makes; `None` where that cannot be had.
    ///
    /// # Panics
    /// When there is no room for it.
    pub fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a directory");
        let image = at.with_extension("img");
        File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("an image");
        let disk = Self { at: at.to_owned(), image };
        (succeeds("mkfs.ext4", &["-q"], &disk.image) && disk.attach()).then_some(disk)
    }

    fn attach(&self) -> bool {
        let image = self.image.display().to_string();
        let mounted = succeeds("mount", &["-o", "loop,errors=remount-ro", &image], &self.at);
        mounted && std::fs::set_permissions(&self.at, Permissions::from_mode(0o700)).is_ok()
    }

    /// As after an error of the disk: nothing can be written from now on, whoever has what open.
    ///
    /// # Panics
    /// When the system does not let us.
    pub fn fail(&self) {
        assert!(succeeds("mount", &["-o", "remount,abort"], &self.at), "it does not fail");
    }

    /// Checks it and mounts it again; nobody may have a file of it open.
    ///
    /// # Panics
    /// When somebody has, or it is broken.
    pub fn mend(&self) {
        assert!(succeeds("umount", &[], &self.at), "it is in use");
        // What it finds it mends, and then it does not end with success.
        succeeds("e2fsck", &["-p"], &self.image);
        assert!(self.attach(), "it is broken");
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}
