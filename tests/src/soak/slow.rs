//! A thousand connections of each kind that take their time: when they are gone, and whether the service answers meanwhile.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::{AgentOptions, Mesh, MeshOptions, exchange, free_port, large};

/// A kind is over when nobody is left, or after this.
const PATIENCE: Duration = Duration::from_secs(150);
/// Between two attackers.
const GAP: Duration = Duration::from_millis(3);
/// Between two bytes of an attacker.
const PACE: Duration = Duration::from_secs(1);

/// What became of one kind.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SlowSeen {
    /// What its connections do.
    pub name: &'static str,
    /// How many there were.
    pub connections: usize,
    /// Those that were refused at once, as everybody would have been in that moment.
    pub refused: usize,
    /// When the first and the last of them were gone, in seconds after they had connected; none when some never were.
    pub gone: Option<[f64; 2]>,
    /// Calls of the neighbour that were answered, and those that were not.
    pub served: usize,
    /// See there.
    pub failed: usize,
    /// The longest that it waited, in milliseconds.
    pub slowest_ms: u64,
}

/// What an attacker does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Head,
    Body,
    Read,
    Http2,
}

impl Kind {
    fn begin(self) -> &'static [u8] {
        match self {
            Self::Head => b"GET / HTTP/1.1\r\nhost: orders.shop\r\nx-a: ",
            Self::Body => b"POST /body HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 1000000\r\n\r\n",
            Self::Read => b"GET /large HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
            Self::Http2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x64\x01\x04\0\0\0\x01",
        }
    }
}

/// One attacker, until its connection is over. How long it had it; none when it was refused at once.
async fn attack(address: SocketAddr, kind: Kind) -> io::Result<Option<Duration>> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4 << 10)?;
    let mut stream = socket.connect(address).await?;
    let began = Instant::now();
    stream.write_all(kind.begin()).await?;
    if matches!(kind, Kind::Read) {
        let mut start = [0; 12];
        stream.read_exact(&mut start).await?;
        if start != *b"HTTP/1.1 200" {
            return Ok(None);
        }
    }
    loop {
        tokio::time::sleep(PACE).await;
        let mut piece = [0; 4096];
        let read = match kind {
            // A byte a second of many.
            Kind::Read => stream.try_read(&mut piece[..1]),
            _ => stream.try_read(&mut piece),
        };
        let ended = match read {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        // What was said to us waits to be read, so that a reset shows before.
        if ended || stream.take_error()?.is_some() || (!matches!(kind, Kind::Read) && stream.write_all(b"a").await.is_err()) {
            return Ok(Some(began.elapsed()));
        }
    }
}

/// Runs all kinds, one after another. `tell` hears how many are left, and of each kind in the end.
pub async fn slow(connections: usize, mut tell: impl FnMut(&str)) -> Vec<SlowSeen> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let backend = listener.local_addr().expect("an address");
    let mut server = JoinSet::new();
    server.spawn(large(listener));
    let mesh = Mesh::start(MeshOptions::default()).await;
    let plain = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let more = vec!["--plaintext".to_owned(), format!("{plain}=shop/orders:80")];
    let services = vec![format!("shop/orders:80/http={backend}")];
    let _orders = mesh.agent("shop/orders", AgentOptions { services, more, ..AgentOptions::default() }).await;
    mesh.apply(
        "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: orders, namespace: shop }\nspec:\n  \
         targetRefs: [{ kind: Service, name: orders }]\n  mtls: { mode: Permissive }\n  authorization:\n    rules:\n      \
         - { name: nobody, action: Allow, from: [{ anonymous: true }] }\n",
    );
    let mut all = Vec::new();
    for (name, kind) in [
        ("a byte of a head a second", Kind::Head),
        ("a byte of a body a second", Kind::Body),
        ("a byte of the answer read a second", Kind::Read),
        ("a byte of an HTTP/2 head a second", Kind::Http2),
    ] {
        let seen = one(name, kind, plain, connections, &mut tell).await;
        tell(&format!("{name}: {seen:?}"));
        all.push(seen);
    }
    all
}

async fn one(name: &'static str, kind: Kind, plain: SocketAddr, connections: usize, tell: &mut impl FnMut(&str)) -> SlowSeen {
    let mut attackers = JoinSet::new();
    for number in 0..u32::try_from(connections).unwrap_or(u32::MAX) {
        attackers.spawn(async move {
            // All at once would find the program's own queue of new connections full.
            tokio::time::sleep(GAP * number).await;
            attack(plain, kind).await
        });
    }
    let mut seen = SlowSeen { name, connections, refused: 0, gone: None, served: 0, failed: 0, slowest_ms: 0 };
    let (began, mut gone, mut told) = (Instant::now(), Vec::new(), Instant::now());
    while !attackers.is_empty() && began.elapsed() < PATIENCE {
        let asked = Instant::now();
        match ask(plain).await {
            Ok(200) => seen.served += 1,
            _ => seen.failed += 1,
        }
        seen.slowest_ms = seen.slowest_ms.max(u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX));
        while let Some(ended) = attackers.try_join_next() {
            match ended.expect("an attacker") {
                Ok(Some(time)) => gone.push(time.as_secs_f64()),
                Ok(None) | Err(_) => seen.refused += 1,
            }
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            tell(&format!("{name}: {} of {connections} are there, {} calls were answered", attackers.len(), seen.served));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    gone.sort_by(f64::total_cmp);
    seen.gone = gone.first().zip(gone.last()).filter(|_| attackers.is_empty()).map(|(first, last)| [*first, *last]);
    seen
}

/// A call of somebody who behaves well, on a connection of its own.
async fn ask(plain: SocketAddr) -> io::Result<u16> {
    let mut stream = TcpStream::connect(plain).await?;
    Ok(exchange(&mut stream, b"GET /small HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n").await?.status)
}
