//! `outrider-floor`: what a pair of proxies can hardly be cheaper than, for the bench of the data plane. A TLS tunnel that reads
//! no HTTP, a minimal proxy on hyper with ten rules, and the certificates that all contenders use.

mod certificates;
mod handshakes;
mod hyper_proxy;
mod tls;
mod tunnel;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Reference programs of the data plane's bench. Nothing for production.
#[derive(Debug, Parser)]
#[command(name = "outrider-floor", version)]
struct Line {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write a CA and the certificates `client` and `server` to a directory
    Certificates {
        /// The directory
        directory: PathBuf,
    },
    /// Carry TCP over mutual TLS, a connection for each connection
    Tunnel(End),
    /// Load: full handshakes with a callee's proxy
    Handshakes(handshakes::Load),
    /// Proxy HTTP/1.1 or HTTP/2 on hyper; the server's end decides by ten rules
    Hyper {
        #[command(flatten)]
        end: End,
        /// Speak HTTP/2 to the other end
        #[arg(long)]
        http2: bool,
    },
}

/// One end of a pair.
#[derive(Clone, Debug, Args)]
struct End {
    /// Which end
    side: Side,
    /// Where it listens
    #[arg(long)]
    listen: SocketAddr,
    /// Where it connects
    #[arg(long)]
    connect: SocketAddr,
    /// Directory of certificates
    #[arg(long)]
    certificates: PathBuf,
}

/// The ends of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    /// Plain in, mutual TLS out.
    Client,
    /// Mutual TLS in, plain out.
    Server,
}

fn main() -> ExitCode {
    let outcome = match Line::parse().what {
        What::Certificates { directory } => certificates::write(&directory),
        What::Tunnel(end) => on_a_thread(tunnel::run(end)),
        What::Handshakes(load) => on_a_thread(load.run()),
        What::Hyper { end, http2 } => on_a_thread(hyper_proxy::run(end, http2)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One worker, as all contenders have.
fn on_a_thread(run: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run)
}
