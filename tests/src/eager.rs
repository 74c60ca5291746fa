//! A program that answers before it has the whole request, and records every byte of every connection.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

/// One connection as the program saw it.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// All bytes so far.
    pub bytes: Vec<u8>,
    /// Whether the other side has ended it.
    pub ended: bool,
}

impl Heard {
    /// What was heard, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// The server. It ends when it is dropped.
#[derive(Debug)]
pub struct Eager {
    /// Where it listens.
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    _server: JoinSet<()>,
}

impl Eager {
    /// Starts a server that says `answer` as soon as it has heard the end of a head, whatever body was announced.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn start(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let record = heard.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let record = record.clone();
                let number = record.lock().expect("heard").len();
                record.lock().expect("heard").push(Heard::default());
                connections.spawn(async move {
                    let mut answered = 0;
                    let mut piece = vec![0; 16 << 10];
                    loop {
                        let count = stream.read(&mut piece).await.unwrap_or(0);
                        let heads = {
                            let mut all = record.lock().expect("heard");
                            all[number].bytes.extend_from_slice(&piece[..count]);
                            all[number].ended = count == 0;
                            all[number].bytes.windows(4).filter(|window| window == b"\r\n\r\n").count()
                        };
                        if count == 0 {
                            return;
                        }
                        for _ in answered..heads {
                            let _ = stream.write_all(answer).await;
                        }
                        answered = heads;
                    }
                });
            }
        });
        Self { address, heard, _server: server }
    }

    /// The connections so far, in the order they were opened.
    ///
    /// # Panics
    /// When a connection panicked.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("heard").clone()
    }
}
