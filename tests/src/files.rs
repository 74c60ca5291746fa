//! Where the real binaries are, and ports that nobody uses.

use std::path::PathBuf;

/// The path of one of our binaries. `cargo xtask test` builds them before the tests; so does `cargo build --workspace`.
///
/// # Panics
/// When it is not built.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // target/debug/deps/test-123 → target/debug
    let dir = test.parent().and_then(|deps| deps.parent()).expect("tests lie in target/PROFILE/deps");
    let path = dir.join(name);
    assert!(path.exists(), "`{}` is not built: run `cargo xtask test`, or `cargo build --workspace` first", path.display());
    path
}

/// A port that was free a moment ago.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}
