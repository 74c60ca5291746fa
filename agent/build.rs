//! Asks the linker for packed relocations: the agent reads all of them when it starts, and they stay in memory.

#[expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = ["OS", "ARCH", "ENV"].map(|part| std::env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default());
    // Where rustc brings a linker that knows them along; the C library must know them too (glibc 2.36).
    if target == ["linux", "x86_64", "gnu"] {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
