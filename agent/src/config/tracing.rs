//! Settings of traces.

use std::{net::IpAddr, path::PathBuf};

use crate::telemetry::{OtlpTarget, Sampler};

/// Share of requests without a trace that are recorded, unless told otherwise.
pub(super) const SHARE: f64 = 0.01;
/// Spans a second and worker that callers may ask for, unless told otherwise.
pub(super) const ASKED: u32 = 100;

/// Which requests are recorded as spans, and where those go.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracing {
    /// The collector; without one nothing is recorded, and traces are passed on.
    pub target: Option<OtlpTarget>,
    /// Share of requests that begin a trace here, 0 to 1.
    pub share: f64,
    /// Spans a second and worker that are recorded because a caller's trace asks for it.
    pub asked: u32,
}

impl Tracing {
    /// Checks what the user wrote.
    pub(super) fn read(otlp: Option<&str>, roots: Option<PathBuf>, share: f64, asked: u32) -> Result<Self, String> {
        if !(0.0..=1.0).contains(&share) {
            return Err(format!("`--trace-sample` is `{share}`: use a share between 0 and 1"));
        }
        let target = otlp.map(|address| target(address, roots)).transpose()?;
        Ok(Self { target, share, asked })
    }

    /// One worker's sampler.
    pub fn sampler(&self) -> Sampler {
        Sampler::new(self.target.is_some(), self.share, self.asked)
    }
}

fn target(address: &str, roots: Option<PathBuf>) -> Result<OtlpTarget, String> {
    let well_formed = address.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    let (host, _) = well_formed.ok_or_else(|| format!("`--otlp` is `{address}`: use HOST:PORT, 4317 by convention"))?;
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let loopback = host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback());
    if roots.is_none() && !loopback {
        return Err(format!(
            "`--otlp` is `{address}`, which is not on loopback: spans tell who calls whom; name the collector's root \
             certificates with `--otlp-ca`"
        ));
    }
    Ok(OtlpTarget { address: address.to_owned(), roots })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_leave_the_machine_under_tls_only() {
        let read = |address: &str, roots: Option<&str>| Tracing::read(Some(address), roots.map(PathBuf::from), 0.5, 1);
        for address in ["127.0.0.1:4317", "[::1]:4317", "localhost:4317"] {
            assert!(read(address, None).is_ok(), "{address}");
        }
        for address in ["10.0.0.1:4317", "collector.example:4317", "localhost.example:4317", "127.0.0.1", ":4317", "a:b"] {
            assert!(read(address, None).unwrap_err().contains(address), "{address}");
        }
        assert!(read("collector.example:4317", Some("ca.pem")).is_ok());
        assert!(Tracing::read(None, None, 1.5, 1).unwrap_err().contains("--trace-sample"));
        assert!(Tracing::read(None, None, f64::NAN, 1).is_err());
    }
}
