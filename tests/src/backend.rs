//! A program behind an agent: a plain HTTP/1.1 server that records every request as it came over the wire.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A request as the backend saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Request target.
    pub target: String,
    /// Fields in order, names as sent.
    pub fields: Vec<(String, String)>,
    /// Body without framing.
    pub body: Vec<u8>,
}

impl Seen {
    /// All values of a field.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(each, _)| each.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }
}

/// The server. It ends when it is dropped.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Arrived>>>,
    failing: Arc<Mutex<Vec<String>>>,
    _server: JoinSet<()>,
}

impl Backend {
    /// Starts it. It answers `200` with `ok` and keeps connections open; a target with `slow` takes 500 ms.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let seen = Arc::<Mutex<Vec<Arrived>>>::default();
        let record = seen.clone();
        let failing = Arc::<Mutex<Vec<String>>>::default();
        let fails = failing.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, record.clone(), fails.clone()));
            }
        });
        Self { address, seen, failing, _server: server }
    }

    /// Requests so far.
    ///
    /// # Panics
    /// When a connection panicked.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("seen").iter().map(Arrived::read).collect()
    }

    /// From now on it answers 503 to requests for this target.
    ///
    /// # Panics
    /// When a connection panicked.
    pub fn fail_on(&self, target: &str) {
        self.failing.lock().expect("failing").push(target.to_owned());
    }

    /// Forgets them.
    ///
    /// # Panics
    /// When a connection panicked.
    pub fn forget(&self) {
        self.seen.lock().expect("seen").clear();
    }
}

/// A request as it arrived: it is taken apart when somebody asks, since a crowd of large ones must not wait for each other here.
#[derive(Debug)]
struct Arrived {
    head: String,
    body: Vec<u8>,
}

impl Arrived {
    /// Method and target.
    fn start(&self) -> (&str, &str) {
        let mut words = self.head.lines().next().unwrap_or_default().split(' ');
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    fn read(&self) -> Seen {
        let (method, target) = self.start();
        let fields = fields(&self.head).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Seen { method: method.to_owned(), target: target.to_owned(), fields, body: self.body.clone() }
    }
}

fn fields(head: &str) -> impl Iterator<Item = (&str, &str)> {
    head.split("\r\n").skip(1).filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim()))
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Vec<Arrived>>>, failing: Arc<Mutex<Vec<String>>>) {
    let mut buf = Vec::with_capacity(32 << 10);
    while let Some(request) = read(&mut stream, &mut buf).await {
        let (_, target) = request.start();
        let slow = target.contains("slow");
        let close = target.contains("close");
        let failing = failing.lock().expect("failing").iter().any(|each| each == target);
        seen.lock().expect("seen").push(request);
        if slow {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        let answer: &[u8] = if failing {
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
        } else if close {
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n"
        } else {
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n"
        };
        if stream.write_all(answer).await.is_err() || close {
            return;
        }
    }
}

async fn more(stream: &mut TcpStream, buf: &mut Vec<u8>) -> Option<()> {
    (stream.read_buf(buf).await.ok()? > 0).then_some(())
}

async fn read(stream: &mut TcpStream, buf: &mut Vec<u8>) -> Option<Arrived> {
    let mut searched = 0;
    let end = loop {
        if let Some(at) = memchr::memmem::find(&buf[searched..], b"\r\n\r\n") {
            break searched + at + 4;
        }
        searched = buf.len().saturating_sub(3);
        more(stream, buf).await?;
    };
    let head = String::from_utf8_lossy(&buf[..end]).into_owned();
    buf.drain(..end);
    if !head.lines().next()?.contains(' ') {
        return None;
    }
    let value = |name: &str| fields(&head).find(|(each, _)| each.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let body = if value("transfer-encoding").is_some() {
        chunked(stream, buf).await?
    } else {
        let length = value("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        while buf.len() < length {
            more(stream, buf).await?;
        }
        buf.drain(..length).collect()
    };
    Some(Arrived { head, body })
}

async fn chunked(stream: &mut TcpStream, buf: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buf.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            more(stream, buf).await?;
        };
        let size = usize::from_str_radix(&String::from_utf8_lossy(&buf[..end]), 16).ok()?;
        while buf.len() < end + 2 + size + 2 {
            more(stream, buf).await?;
        }
        body.extend_from_slice(&buf[end + 2..end + 2 + size]);
        buf.drain(..end + 2 + size + 2);
        if size == 0 {
            return Some(body);
        }
    }
}
