//! `outrider-load`: keep-alive HTTP/1.1 GETs as fast as the other side answers, or at a fixed rate, and one line of JSON.
//!
//! It shares its machine with what it measures, so it does little: one thread, one write and mostly one read a request.

use std::{
    cell::{Cell, RefCell},
    io::Write as _,
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::{JoinSet, LocalSet},
};

/// Keep-alive HTTP/1.1 load on one URL.
#[derive(Clone, Debug, Parser)]
#[command(name = "outrider-load", version)]
struct Args {
    /// What to GET: http://HOST[:PORT]/PATH
    url: String,
    /// Send absolute-form requests to this proxy (HOST:PORT) instead of connecting to the URL's host
    #[arg(long, value_name = "HOST:PORT")]
    proxy: Option<String>,
    /// Connections, kept open
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
    /// How long to measure
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long to load before measuring
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Requests a second over all connections; as many as possible when absent. Latency then counts from the moment a
    /// request was due, so that a stall is not hidden by the requests that it kept from being sent
    #[arg(long)]
    rate: Option<f64>,
    /// Keep the connections open after the measurement, until standard input ends
    #[arg(long)]
    hold: bool,
}

/// What is sent, and to whom.
#[derive(Debug)]
struct Target {
    address: String,
    request: Vec<u8>,
}

/// What was seen while measuring.
#[derive(Debug)]
struct Seen {
    latency: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

/// When to measure and when to stop.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: Instant,
    until: Instant,
}

/// Largest response head and the buffer's size, bytes.
const BUFFER: usize = 64 << 10;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(line) => match writeln!(std::io::stdout(), "{line}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<String> {
    ensure!(args.seconds > 0.0 && args.seconds.is_finite(), "--seconds must be above zero");
    ensure!(args.warm_up >= 0.0 && args.warm_up.is_finite(), "--warm-up must not be negative");
    ensure!(args.rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "--rate must be above zero");
    let target = Rc::new(Target::new(args)?);
    let seen =
        Rc::new(RefCell::new(Seen { latency: Histogram::new_with_bounds(1, 60_000_000, 3)?, errors: 0, first_error: None }));
    let holding = Rc::new(Cell::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let start = Instant::now();
    let from = start + Duration::from_secs_f64(args.warm_up);
    let window = Window { from, until: from + Duration::from_secs_f64(args.seconds) };
    LocalSet::new().block_on(&runtime, async {
        let mut connections = JoinSet::new();
        for number in 0..args.connections {
            // At a fixed rate connections take turns, evenly spread over the interval.
            let pace = args.rate.map(|rate| {
                let interval = Duration::from_secs_f64(f64::from(args.connections) / rate);
                (start + interval.mul_f64(f64::from(number) / f64::from(args.connections)), interval)
            });
            connections.spawn_local(connection(Rc::clone(&target), window, pace, Rc::clone(&seen), Rc::clone(&holding)));
        }
        // Requests under way at the end are not waited for: they belong to nobody's second.
        tokio::time::sleep_until(window.until.into()).await;
        if args.hold {
            holding.set(true);
            let _ = writeln!(std::io::stdout(), "holding").and_then(|()| std::io::stdout().flush());
            let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await;
        }
        connections.abort_all();
        while connections.join_next().await.is_some() {}
    });
    let seen = seen.borrow();
    let requests = seen.latency.len();
    if requests == 0 {
        bail!("no request succeeded: {}", seen.first_error.as_deref().unwrap_or("no answer came in time"));
    }
    if let Some(error) = &seen.first_error {
        let _ = writeln!(std::io::stderr(), "{} errors, the first: {error}", seen.errors);
    }
    Ok(serde_json::json!({
        "requests": requests,
        "errors": seen.errors,
        "seconds": args.seconds,
        "p50_us": seen.latency.value_at_quantile(0.50),
        "p99_us": seen.latency.value_at_quantile(0.99),
        "max_us": seen.latency.max(),
    })
    .to_string())
}

impl Target {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let rest = args.url.strip_prefix("http://").with_context(|| format!("`{}` is not an http:// URL", args.url))?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        ensure!(!authority.is_empty() && !authority.contains('@'), "`{}` names no host", args.url);
        ensure!(args.url.bytes().all(|byte| byte.is_ascii_graphic()), "`{}` has bytes that no URL has", args.url);
        let form = if args.proxy.is_some() { format!("http://{authority}{path}") } else { path.to_owned() };
        let address = match &args.proxy {
            Some(proxy) => proxy.clone(),
            None if authority.rsplit(']').next().is_some_and(|tail| tail.contains(':')) => authority.to_owned(),
            None => format!("{authority}:80"),
        };
        let request = format!("GET {form} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: outrider-load\r\n\r\n").into_bytes();
        Ok(Self { address, request })
    }
}

impl Seen {
    fn record(&mut self, window: Window, begun: Instant, ended: Instant, outcome: anyhow::Result<()>) {
        if ended < window.from || ended > window.until {
            return;
        }
        match outcome {
            Ok(()) => {
                let micros = u64::try_from(ended.saturating_duration_since(begun).as_micros()).unwrap_or(u64::MAX);
                self.latency.saturating_record(micros.max(1));
            }
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
}

/// One connection, opened again when it breaks.
async fn connection(
    target: Rc<Target>,
    window: Window,
    pace: Option<(Instant, Duration)>,
    seen: Rc<RefCell<Seen>>,
    holding: Rc<Cell<bool>>,
) {
    let mut buffer = vec![0; BUFFER];
    let mut due = pace.map(|(first, _)| first);
    let mut stream = None;
    loop {
        if let Some(due) = due {
            tokio::time::sleep_until(due.into()).await;
        }
        if holding.get() {
            std::future::pending::<()>().await;
        }
        let begun = due.unwrap_or_else(Instant::now);
        let outcome = exchange(&target, &mut stream, &mut buffer).await;
        let has_broken = stream.is_none();
        seen.borrow_mut().record(window, begun, Instant::now(), outcome);
        if let (Some(due), Some((_, interval))) = (due.as_mut(), pace) {
            *due += interval;
        } else if has_broken {
            // A server that is down must not turn the measurement into a connect flood.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// One request and its whole response. Leaves the stream open only when it can carry another.
async fn exchange(target: &Target, stream: &mut Option<TcpStream>, buffer: &mut [u8]) -> anyhow::Result<()> {
    let mut open = match stream.take() {
        Some(open) => open,
        None => {
            let open =
                TcpStream::connect(&target.address).await.with_context(|| format!("cannot connect to {}", target.address))?;
            open.set_nodelay(true)?;
            open
        }
    };
    open.write_all(&target.request).await?;
    let mut filled = 0;
    let head = loop {
        let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) else {
            bail!("the response head is too large")
        };
        let read = open.read(room).await?;
        ensure!(read > 0, "the connection was closed instead of answered");
        filled += read;
        if let Some(head) = Head::parse(buffer.get(..filled).unwrap_or_default())? {
            break head;
        }
    };
    let mut left = (head.length + head.body).checked_sub(filled).context("more bytes came than the response has")?;
    while left > 0 {
        let most = left.min(buffer.len());
        let read = open.read(buffer.get_mut(..most).unwrap_or_default()).await?;
        ensure!(read > 0, "the connection was closed in the middle of a body");
        left -= read;
    }
    if !head.closes {
        *stream = Some(open);
    }
    ensure!((200..300).contains(&head.status), "status {}", head.status);
    Ok(())
}

/// What matters of a response head.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Bytes up to the body.
    length: usize,
    /// Bytes of the body.
    body: usize,
    closes: bool,
}

impl Head {
    /// `None` while it is not complete.
    fn parse(bytes: &[u8]) -> anyhow::Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let text = std::str::from_utf8(bytes.get(..end).unwrap_or_default()).context("the response head is not text")?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let mut head = Self { status: status.context("not an HTTP response")?, length: end + 4, body: 0, closes: false };
        let mut has_length = false;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                head.body = value.trim().parse().context("a content-length that is no number")?;
                has_length = true;
            } else if name.eq_ignore_ascii_case("connection") {
                head.closes = value.trim().eq_ignore_ascii_case("close");
            }
        }
        ensure!(has_length || matches!(head.status, 204 | 304), "a response without content-length is not understood");
        Ok(Some(head))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn target(line: &[&str]) -> anyhow::Result<Target> {
        Target::new(&Args::try_parse_from(std::iter::once("outrider-load").chain(line.iter().copied()))?)
    }

    #[test]
    fn a_proxy_gets_the_absolute_form_and_an_origin_the_path() {
        let direct = target(&["http://127.0.0.1:8080/1k"]).unwrap();
        assert_eq!(direct.address, "127.0.0.1:8080");
        assert!(direct.request.starts_with(b"GET /1k HTTP/1.1\r\nhost: 127.0.0.1:8080\r\n"));
        let proxied = target(&["http://files.shop", "--proxy", "127.0.0.1:15101"]).unwrap();
        assert_eq!(proxied.address, "127.0.0.1:15101");
        assert!(proxied.request.starts_with(b"GET http://files.shop/ HTTP/1.1\r\nhost: files.shop\r\n"));
        assert!(target(&["https://files.shop/"]).is_err());
    }

    #[test]
    fn a_response_head_is_read_when_it_is_whole() {
        let text = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 12\r\nconnection: close\r\n\r\nbody";
        assert_eq!(Head::parse(&text[..40]).unwrap(), None);
        assert_eq!(Head::parse(text).unwrap(), Some(Head { status: 403, length: text.len() - 4, body: 12, closes: true }));
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(Head::parse(b"nonsense\r\n\r\n").is_err());
    }

    #[test]
    fn load_counts_what_was_answered_and_what_was_refused() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                std::thread::spawn(move || serve(stream.unwrap()));
            }
        });
        let args = Args { url, proxy: None, connections: 2, seconds: 0.3, warm_up: 0.0, rate: None, hold: false };
        let line: serde_json::Value = serde_json::from_str(&run(&args).unwrap()).unwrap();
        let (requests, errors) = (line["requests"].as_u64().unwrap(), line["errors"].as_u64().unwrap());
        // Every fourth answer is a refusal.
        assert!(errors > 0 && errors.abs_diff(requests / 3) <= 3, "{line}");
        let paced = Args { rate: Some(40.0), seconds: 0.5, ..args };
        let line: serde_json::Value = serde_json::from_str(&run(&paced).unwrap()).unwrap();
        assert!(line["requests"].as_u64().unwrap() + line["errors"].as_u64().unwrap() <= 22, "{line}");
    }

    fn serve(mut stream: std::net::TcpStream) {
        let mut buffer = [0; 1024];
        for count in 1.. {
            match stream.read(&mut buffer) {
                Ok(read) if read > 0 => {}
                _ => return,
            }
            let status = if count % 4 == 0 { "403 Forbidden" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}
