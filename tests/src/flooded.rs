//! A service under attack, and a neighbour of the attacker who goes on asking: what it sees, and what the agent holds.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use outrider_agent::tls::MeshProtocol;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, MeshPeer, exchange,
    floods::{End, Flood, TIMES},
    free_port,
};

/// Between two requests of the neighbour.
const PACE: Duration = Duration::from_millis(5);

/// How a flood comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// HTTP/2 with prior knowledge, in plaintext.
    Plaintext,
    /// HTTP/2 on the mesh port.
    Http2,
    /// The mesh protocol.
    Mesh,
}

impl Way {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Http2 => "mesh",
            Self::Mesh => "mesh protocol",
        }
    }
}

/// What a flood did.
#[derive(Clone, Debug)]
pub struct Ridden {
    /// The agent ended the connection.
    pub closed: bool,
    /// Frames that were sent before their sender saw the end, buffers of the system included.
    pub frames: usize,
    /// How much more the agent held at most, in KiB.
    pub grown: u64,
    /// How long the neighbour waited, each time.
    pub waited: Vec<Duration>,
}

/// The service, with everybody allowed, also in plaintext.
#[derive(Debug)]
pub struct Flooded {
    _mesh: Mesh,
    orders: AgentProcess,
    backend: Backend,
    peer: MeshPeer,
    plain: SocketAddr,
}

impl Flooded {
    /// Starts it.
    pub async fn start() -> Self {
        let backend = Backend::start().await;
        let mesh = Mesh::start(MeshOptions::default()).await;
        let port = free_port();
        let more = vec!["--plaintext".to_owned(), format!("127.0.0.1:{port}=shop/orders:80")];
        let services = vec![format!("shop/orders:80/http={}", backend.address)];
        let orders = mesh.agent("shop/orders", AgentOptions { services, more, ..AgentOptions::default() }).await;
        mesh.apply(
            "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: orders, namespace: shop }\nspec:\n  \
             targetRefs: [{ kind: Service, name: orders }]\n  mtls: { mode: Permissive }\n  authorization:\n    rules:\n      \
             - { name: nobody, action: Allow, from: [{ anonymous: true }] }\n      \
             - { name: web, action: Allow, from: [{ serviceAccounts: [shop/web] }] }\n",
        );
        let peer = MeshPeer::join(&mesh, "shop/web").await;
        let flooded = Self { _mesh: mesh, orders, backend, peer, plain: SocketAddr::from(([127, 0, 0, 1], port)) };
        flooded.quiet(Duration::from_millis(200)).await;
        flooded
    }

    /// Where it listens in plaintext.
    pub fn plain(&self) -> SocketAddr {
        self.plain
    }

    /// A number of the agent's status, in KiB.
    fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.orders.process.id())).expect("a process");
        let line = status.lines().find_map(|each| each.strip_prefix(line)).expect("a line");
        line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
    }

    /// How long the neighbour waits while nothing else happens.
    pub async fn quiet(&self, time: Duration) -> Vec<Duration> {
        let mut waited = Vec::new();
        let _ = tokio::time::timeout(time, self.neighbour(&mut waited, usize::MAX)).await;
        waited
    }

    /// Asks on a connection of its own, so many times.
    async fn neighbour(&self, waited: &mut Vec<Duration>, times: usize) {
        let mut stream = TcpStream::connect(self.plain).await.expect("a connection");
        for _ in 0..times {
            let asked = Instant::now();
            let request = b"GET /fine HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
            let answer = exchange(&mut stream, request).await.expect("the neighbour is answered");
            if answer.status != 200 {
                let log = self.orders.access_log().await;
                let refused: Vec<_> = log.iter().filter(|line| line.get("status").is_some_and(|status| *status != 200)).collect();
                panic!("the neighbour got {}: {:#?}", answer.status, refused.last());
            }
            waited.push(asked.elapsed());
            tokio::time::sleep(PACE).await;
        }
    }

    /// Sends a flood on a connection of its own, with the neighbour asking meanwhile, and once more afterwards.
    pub async fn ride(&self, flood: &Flood, way: Way) -> Ridden {
        self.ride_in(flood, way, Pace::Fast).await
    }

    /// The same so slowly that hardly more is sent than what the agent takes.
    pub async fn ride_slowly(&self, flood: &Flood, way: Way) -> Ridden {
        self.ride_in(flood, way, Pace::Slow).await
    }

    async fn ride_in(&self, flood: &Flood, way: Way, pace: Pace) -> Ridden {
        self.backend.forget();
        let before = self.memory("VmRSS:");
        // From here on the most it ever held is the most since now (proc(5)).
        let marked = std::fs::write(format!("/proc/{}/clear_refs", self.orders.process.id()), "5").is_ok();
        let mut waited = Vec::new();
        let (closed, frames) = {
            let neighbour = self.neighbour(&mut waited, usize::MAX);
            let sending = async {
                let protocol = match way {
                    Way::Plaintext => {
                        return send(TcpStream::connect(self.plain).await.expect("a connection"), flood, pace, way).await;
                    }
                    Way::Http2 => MeshProtocol::Http2,
                    Way::Mesh => MeshProtocol::Mesh,
                };
                let expected = "spiffe://mesh.internal/ns/shop/sa/orders";
                let connected = self.peer.connect(self.orders.mesh, "shop/orders", 80, protocol, expected).await;
                send(connected.expect("a mesh connection"), flood, pace, way).await
            };
            tokio::select! {
                sent = sending => sent,
                () = neighbour => (false, 0),
            }
        };
        self.neighbour(&mut waited, 1).await;
        let most = self.memory(if marked { "VmHWM:" } else { "VmRSS:" });
        Ridden { closed, frames, grown: most.saturating_sub(before), waited }
    }
}

/// How fast a flood is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Fast,
    Slow,
}

/// Frames in what is sent.
fn frames(way: Way, mut bytes: &[u8]) -> usize {
    let mut count = 0;
    loop {
        let length = match (way, bytes) {
            (Way::Mesh, [_, _, _, _, high, middle, low, ..]) => 8 + u32::from_be_bytes([0, *high, *middle, *low]) as usize,
            (Way::Plaintext | Way::Http2, [high, middle, low, ..]) => 9 + u32::from_be_bytes([0, *high, *middle, *low]) as usize,
            _ => return count,
        };
        count += 1;
        bytes = bytes.get(length..).unwrap_or_default();
    }
}

/// Sends a flood while what comes back is read. Whether the agent ended the connection, and after how many frames.
async fn send(io: impl AsyncRead + AsyncWrite, flood: &Flood, pace: Pace, way: Way) -> (bool, usize) {
    let (mut read, mut write) = tokio::io::split(io);
    let (mut sent, mut count) = (0, 0);
    let sending = async {
        write.write_all(flood.opening()).await?;
        while sent < TIMES {
            let next = flood.next(sent);
            write.write_all(&next).await?;
            (sent, count) = (sent + 1, count + frames(way, &next));
            if pace == Pace::Slow && sent % 10 == 0 {
                write.flush().await?;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        write.flush().await?;
        // What a slow agent still has to read.
        tokio::time::sleep(if flood.end == End::Closed { Duration::from_secs(10) } else { Duration::from_millis(100) }).await;
        Ok::<(), io::Error>(())
    };
    let mut piece = vec![0; 16 << 10];
    let ended = async { while read.read(&mut piece).await.is_ok_and(|count| count > 0) {} };
    let closed = tokio::select! {
        sent = sending => sent.is_err(),
        () = ended => true,
    };
    (closed, count)
}
