//! `cargo bench -p outrider-control-plane --features bench --bench sign -- SECONDS`: one line, leaves signed a second and core.

use std::{io::Write as _, time::Duration};

use outrider_control_plane::leaves_per_second;

fn main() -> anyhow::Result<()> {
    let seconds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(1.0);
    let directory = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rate = runtime.block_on(leaves_per_second(directory.path(), Duration::from_secs_f64(seconds)))?;
    Ok(writeln!(std::io::stdout(), "{rate}")?)
}
