//! Where the real binaries are, and ports that nobody uses.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

/// Ports that tests use: from here, so many.
const FIRST: u16 = 20_000;
const PORTS: u32 = 12_000;

/// The path of one of our binaries. `cargo xtask test` builds them before the tests; so does `cargo build --workspace`.
///
/// # Panics
/// When it is not built.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // Tests lie in target/PROFILE/deps, programs of the tests' own beside the others.
    let dir = test.parent().expect("a directory");
    let dir = if dir.ends_with("deps") { dir.parent().expect("target/PROFILE") } else { dir };
    let path = dir.join(name);
    assert!(path.exists(), "`{}` is not built: run `cargo xtask test`, or `cargo build --workspace` first", path.display());
    path
}

/// A port that was free a moment ago and that nobody else here is given: below those that the system takes for outgoing
/// connections, which would come in between now and its use.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    (0..PORTS)
        .find_map(|_| {
            let place = std::process::id().wrapping_mul(131).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % PORTS;
            let port = FIRST + u16::try_from(place).ok()?;
            std::net::TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(port)
        })
        .expect("a free port")
}
