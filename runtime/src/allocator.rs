//! The C library's allocator, which reads its settings from the environment when a program starts and never again.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

/// Where glibc looks for settings.
const TUNABLES: &str = "GLIBC_TUNABLES";
/// Freed pieces of each size up to 1 KiB that a thread keeps for itself: at most 2 MiB of them. The library's own number is 7, and
/// who has dozens of requests under way frees and takes that many again and again by the slow way (docs/performance.md).
const KEPT: &str = "glibc.malloc.tcache_count=64";
/// Says that it was tried: a library that takes no settings from its environment must not be asked for ever.
const TRIED: &str = "OUTRIDER_ALLOCATOR";

/// Begins the program anew, with the same process, arguments and descriptors, and the allocator set for many small pieces. To be
/// called before anything else. Returns when that is done already, when an operator has set it, and when it cannot be done.
pub fn settle() {
    let Some(tunables) = wanted(std::env::var_os(TRIED), std::env::var_os(TUNABLES)) else { return };
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // It returns only when it fails; then everything goes on as it is.
    let _ = again.args(arguments).env(TRIED, "settled").env(TUNABLES, tunables).exec();
}

/// The settings to begin with anew, if there is reason to.
fn wanted(tried: Option<OsString>, set: Option<OsString>) -> Option<OsString> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) || tried.is_some() {
        return None;
    }
    let mut tunables = set.unwrap_or_default();
    if tunables.to_string_lossy().contains("tcache_count") {
        return None;
    }
    if !tunables.is_empty() {
        tunables.push(":");
    }
    tunables.push(KEPT);
    Some(tunables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_stays_set_and_nothing_is_tried_twice() {
        let wanted = |tried: Option<&str>, set: Option<&str>| wanted(tried.map(Into::into), set.map(Into::into));
        assert_eq!(wanted(None, None), Some(KEPT.into()));
        assert_eq!(wanted(None, Some("")), Some(KEPT.into()));
        assert_eq!(wanted(None, Some("glibc.malloc.check=1")), Some(format!("glibc.malloc.check=1:{KEPT}").into()));
        assert_eq!(wanted(None, Some("glibc.malloc.tcache_count=0")), None);
        assert_eq!(wanted(Some("settled"), None), None);
    }
}
