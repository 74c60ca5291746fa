//! Compiles the `.proto` files with protox: nobody needs protoc.
use prost::Message as _;

#[expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=outrider");
    println!("cargo:rerun-if-changed=spiffe");
    let mut files: Vec<String> =
        ["identity", "config", "telemetry", "admin", "operator"].iter().map(|name| format!("outrider/v1/{name}.proto")).collect();
    files.push("spiffe/workload.proto".to_owned());
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("outrider.v1.fds");
    std::fs::write(&out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
