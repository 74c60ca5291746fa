//! A program that makes a call of its own for each that it gets, and answers as it was answered.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// The program. It ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
    onward: tokio::sync::watch::Sender<Option<(SocketAddr, String)>>,
    _server: JoinSet<()>,
}

impl Relay {
    /// Starts it. Until it is told where to go on, it answers 503.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let (onward, next) = tokio::sync::watch::channel(None);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, next.clone(), count.clone()));
            }
        });
        Self { address, asked, onward, _server: server }
    }

    /// From now on it calls `url` through the agent at `proxy` for each request.
    pub fn goes_on_to(&self, proxy: SocketAddr, url: &str) {
        self.onward.send_replace(Some((proxy, url.to_owned())));
    }

    /// Requests so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

type Onward = tokio::sync::watch::Receiver<Option<(SocketAddr, String)>>;

async fn serve(mut stream: TcpStream, next: Onward, asked: Arc<AtomicUsize>) {
    let mut buf = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buf.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !matches!(stream.read_buf(&mut buf).await, Ok(read) if read > 0) {
                return;
            }
        };
        buf.drain(..end);
        asked.fetch_add(1, Ordering::SeqCst);
        let onward = next.borrow().clone();
        let status = match onward {
            None => 503,
            Some((proxy, url)) => crate::through_proxy(proxy, "GET", &url, "").await.map_or(502, |answer| answer.status),
        };
        let answer = format!("HTTP/1.1 {status} Relayed\r\ncontent-length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
