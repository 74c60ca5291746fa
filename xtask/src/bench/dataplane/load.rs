//! What is done to a contender, by load generators that say what they counted.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use super::{
    super::{Plan, ground::Ground},
    contender::{Contender, Handshake},
    mesh,
};
use crate::command;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// 16 connections, 1 KiB GET, as fast as it goes.
    C16,
    /// 64 connections.
    C64,
    /// 1000 requests a second over 16 connections.
    Rate,
    /// A new connection for each request.
    Close,
    /// 4 connections, 10 MiB each.
    Big,
    /// Like gRPC: HTTP/2 all the way, POST of 133 bytes, 4 connections of 16 streams.
    Grpc,
    /// Full mutual TLS handshakes with the callee's proxy.
    Handshakes,
}

/// What a load generator counted.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) requests: f64,
    pub(super) seconds: f64,
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    pub(super) failed: f64,
}

impl Workload {
    pub(super) const ALL: [Self; 7] = [Self::C16, Self::C64, Self::Rate, Self::Close, Self::Big, Self::Grpc, Self::Handshakes];

    /// Its word in the table and for `--only`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::C16 => "c16",
            Self::C64 => "c64",
            Self::Rate => "rate",
            Self::Close => "close",
            Self::Big => "big",
            Self::Grpc => "grpc",
            Self::Handshakes => "handshakes",
        }
    }

    /// Measured in every round; others in every second one.
    pub(super) fn is_main(self) -> bool {
        matches!(self, Self::C16 | Self::C64 | Self::Rate)
    }

    /// Where a contender takes it, if it does.
    pub(super) fn address(self, contender: &Contender) -> Option<SocketAddr> {
        match self {
            Self::Grpc => contender.http2,
            Self::Handshakes => contender.tls.as_ref().map(|(address, _)| *address),
            _ => contender.http1,
        }
    }
}

/// Puts load on a contender.
pub(super) fn run(
    ground: &Ground,
    workload: &Workload,
    contender: &Contender,
    address: SocketAddr,
    time: Duration,
) -> anyhow::Result<Counted> {
    let counted = match workload {
        Workload::C16 => wrk(address, 16, "/1k", time, false),
        Workload::C64 => wrk(address, 64, "/1k", time, false),
        Workload::Close => wrk(address, 16, "/1k", time, true),
        Workload::Big => wrk(address, 4, "/10m", time, false),
        Workload::Rate => rate(ground, address, time),
        Workload::Grpc => h2load(ground, address, time),
        Workload::Handshakes => handshakes(ground, contender, time),
    };
    counted.with_context(|| format!("{} of {}", workload.word(), contender.name))
}

fn wrk(address: SocketAddr, connections: u32, path: &str, time: Duration, closing: bool) -> anyhow::Result<Counted> {
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", "--latency", &format!("-c{connections}"), &format!("-d{}s", time.as_secs().max(1))]);
    if closing {
        wrk.args(["-H", "connection: close"]);
    }
    read_wrk(&command::output(wrk.arg(format!("http://{address}{path}")))?)
}

fn read_wrk(text: &str) -> anyhow::Result<Counted> {
    let line = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let quantile = |name: &str| line(name).and_then(microseconds);
    let summary = text.lines().find(|line| line.contains(" requests in ")).context("wrk counted nothing")?;
    let mut words = summary.split_whitespace();
    let requests: f64 = words.next().and_then(|word| word.parse().ok()).context("wrk counted no requests")?;
    let rate: f64 = line("Requests/sec:").and_then(|rate| rate.parse().ok()).context("wrk says no rate")?;
    ensure!(requests > 0.0 && rate > 0.0, "no request was answered");
    let refused = line("Non-2xx or 3xx responses:").and_then(|count| count.parse().ok()).unwrap_or(0.0);
    // connect, read, write, timeout; those that ended with the run are none.
    let broken: f64 = line("Socket errors:").map_or(0.0, |errors| {
        errors.split(|letter: char| !letter.is_ascii_digit()).filter_map(|number| number.parse::<f64>().ok()).sum()
    });
    Ok(Counted { requests, seconds: requests / rate, p50_us: quantile("50%"), p99_us: quantile("99%"), failed: refused + broken })
}

/// A time as wrk and h2load write it.
fn microseconds(text: &str) -> Option<f64> {
    let at = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().ok()?;
    Some(
        number
            * match unit {
                "us" => 1.0,
                "ms" => 1e3,
                "s" => 1e6,
                _ => return None,
            },
    )
}

/// What our own generators say.
#[derive(Debug, Deserialize)]
struct Line {
    requests: f64,
    errors: f64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
}

impl From<Line> for Counted {
    fn from(line: Line) -> Self {
        let some = |value: f64| Some(value).filter(|value| *value > 0.0);
        Self {
            requests: line.requests,
            seconds: line.seconds,
            p50_us: some(line.p50_us),
            p99_us: some(line.p99_us),
            failed: line.errors,
        }
    }
}

fn rate(ground: &Ground, address: SocketAddr, time: Duration) -> anyhow::Result<Counted> {
    let mut load = ground.binary("outrider-load");
    load.args([&format!("http://{address}/1k"), "--warm-up", "0", "--connections", "16", "--rate", "1000"]);
    load.args(["--seconds", &time.as_secs_f64().to_string()]);
    let line: Line = serde_json::from_str(&command::output(&mut load)?)?;
    Ok(line.into())
}

fn h2load(ground: &Ground, address: SocketAddr, time: Duration) -> anyhow::Result<Counted> {
    let body = ground.directory().join("grpc.bin");
    std::fs::write(&body, [&[0, 0, 0, 0, 128][..], &[b'x'; 128]].concat())?;
    let mut h2load = Command::new("h2load");
    h2load.args(["-t1", "-c4", "-m16", "-D", &time.as_secs().max(1).to_string(), "-d"]).arg(&body);
    h2load.args(["-H", "content-type: application/grpc", "-H", "te: trailers", &format!("http://{address}/grpc")]);
    read_h2load(&command::output(&mut h2load)?)
}

fn read_h2load(text: &str) -> anyhow::Result<Counted> {
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).context("h2load counted nothing");
    let before = |line: &str, word: &str| -> Option<f64> {
        let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|each| *each == word)?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    };
    let (finished, requests) = (line("finished in")?, line("requests:")?);
    let served = before(line("status codes:")?, "2xx").context("h2load says no status")?;
    let rate = before(finished, "req/s").context("h2load says no rate")?;
    ensure!(served > 0.0 && rate > 0.0, "no request was answered");
    let failed = before(requests, "failed").unwrap_or(0.0) + before(requests, "errored").unwrap_or(0.0);
    Ok(Counted { requests: served, seconds: served / rate, p50_us: None, p99_us: None, failed })
}

/// The generator of handshakes, ready for this contender.
fn handshaker(ground: &Ground, contender: &Contender) -> anyhow::Result<Option<Command>> {
    let Some((address, how)) = &contender.tls else { return Ok(None) };
    let mut load = ground.binary("outrider-floor");
    load.args(["handshakes", "--address", &address.to_string()]);
    match how {
        Handshake::Certificates => load.arg("--certificates").arg(ground.certificates()),
        Handshake::Mesh { join, socket } => {
            let token = mesh::token(ground, socket, "bench/web")?;
            load.args(["--join", &join.to_string(), "--token", &token]);
            load.args(["--service", "bench/files", "80", "spiffe://mesh.internal/ns/bench/sa/files"])
        }
    };
    Ok(Some(load))
}

fn handshakes(ground: &Ground, contender: &Contender, time: Duration) -> anyhow::Result<Counted> {
    let mut load = handshaker(ground, contender)?.context("takes no handshakes")?;
    let line: Line = serde_json::from_str(&command::output(load.args(["--seconds", &time.as_secs_f64().to_string()]))?)?;
    Ok(line.into())
}

/// KiB that a plain connection costs either proxy while it is idle.
pub(super) fn idle_plain(ground: &Ground, plan: &Plan, contender: &Contender) -> anyhow::Result<Option<(f64, f64)>> {
    let (Some(address), Some((caller, callee))) = (contender.http1, &contender.pair) else { return Ok(None) };
    let before = (caller.resident()?, callee.resident()?);
    let count = plan.idle;
    let mut load = ground.binary("outrider-load");
    // One request for each connection, one after the other, then nothing.
    let rate = 500.0_f64.min(f64::from(count));
    load.args([&format!("http://{address}/1k"), "--connections", &count.to_string(), "--rate", &rate.to_string()]);
    let seconds = f64::from(count) / rate;
    load.args(["--warm-up", "0", "--seconds", &(seconds + 0.2).to_string(), "--hold"]);
    let grown = while_held(load, |_| {
        let held = caller.descriptors()?;
        ensure!(held > count as usize, "{held} descriptors are open at the caller's proxy: it does not hold {count} connections");
        Ok((caller.resident()?, callee.resident()?))
    })?;
    let each = |before: u64, after: u64| (after as f64 - before as f64) / 1024.0 / f64::from(count);
    Ok(Some((each(before.0, grown.0), each(before.1, grown.1))))
}

/// KiB that a mutual TLS connection costs the callee's proxy while it is idle.
pub(super) fn idle_tls(ground: &Ground, plan: &Plan, contender: &Contender) -> anyhow::Result<Option<f64>> {
    let (Some(mut load), Some((_, callee))) = (handshaker(ground, contender)?, &contender.pair) else { return Ok(None) };
    let before = callee.resident()?;
    load.args(["--hold", &plan.idle.to_string()]);
    let after = while_held(load, |_| callee.resident())?;
    Ok(Some((after as f64 - before as f64) / 1024.0 / f64::from(plan.idle)))
}

/// Runs a generator that says a line and then holds its connections; ends it afterwards.
fn while_held<T>(mut load: Command, look: impl FnOnce(&str) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut child = load.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the load generator")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    // Buffers are given back a moment later.
    std::thread::sleep(Duration::from_millis(500));
    let seen = look(&line);
    drop(child.stdin.take());
    let _ = child.kill();
    child.wait()?;
    ensure!(!line.is_empty(), "the load generator held nothing");
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_understood() {
        let text = "Running 1s test @ http://127.0.0.1:80/\n  Latency Distribution\n     50%  231.00us\n     75%  257.00us\n     99%    1.20ms\n  61720 requests in 1.10s, 74.81MB read\n  Socket errors: connect 0, read 2, write 0, timeout 1\n  Non-2xx or 3xx responses: 4\nRequests/sec:  56109.09\n";
        let counted = read_wrk(text).unwrap();
        assert_eq!((counted.requests, counted.p50_us, counted.p99_us, counted.failed), (61720.0, Some(231.0), Some(1200.0), 7.0));
        assert!((counted.seconds - 1.1).abs() < 0.01);
    }

    #[test]
    fn what_h2load_says_is_understood() {
        let text = "finished in 2.00s, 31234.50 req/s, 10.2MB/s\nrequests: 62469 total, 62533 started, 62469 done, 62469 succeeded, 3 failed, 1 errored, 0 timeout\nstatus codes: 62469 2xx, 0 3xx, 0 4xx, 0 5xx\n";
        let counted = read_h2load(text).unwrap();
        assert_eq!((counted.requests, counted.failed), (62469.0, 4.0));
    }
}
