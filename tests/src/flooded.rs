//! A service under attack, and a neighbour of the attacker who goes on asking: what it sees, and what the agent holds.

use std::{
    cell::Cell,
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
    /// How long others waited meanwhile.
    pub waited: Waited,
}

/// How long others waited, each time.
#[derive(Clone, Debug, Default)]
pub struct Waited {
    /// The neighbour, who asks by way of the agent.
    pub neighbour: Vec<Duration>,
    /// Somebody who asks the program itself: it shares this machine with the flood's sender.
    pub direct: Vec<Duration>,
}

impl Waited {
    /// The same and more.
    pub fn extend(&mut self, more: Self) {
        self.neighbour.extend(more.neighbour);
        self.direct.extend(more.direct);
    }
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

    /// What neighbour and program take while nothing else happens.
    pub async fn quiet(&self, time: Duration) -> Waited {
        self.meanwhile(tokio::time::sleep(time)).await.1
    }

    /// What they take while something else happens, to the end of what was asked when it ends.
    async fn meanwhile<T>(&self, other: impl Future<Output = T>) -> (T, Waited) {
        let mut waited = Waited::default();
        let is_over = Cell::new(false);
        let other = async {
            let came = other.await;
            is_over.set(true);
            came
        };
        let neighbour = self.ask("the neighbour", self.plain, &mut waited.neighbour, &is_over);
        let direct = self.ask("who asks the program itself", self.backend.address, &mut waited.direct, &is_over);
        let (came, (), ()) = tokio::join!(other, neighbour, direct);
        (came, waited)
    }

    /// Asks on a connection of its own, once at least, until it is over.
    async fn ask(&self, who: &str, address: SocketAddr, waited: &mut Vec<Duration>, is_over: &Cell<bool>) {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        loop {
            let asked = Instant::now();
            let request = b"GET /fine HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
            let answer = exchange(&mut stream, request).await.unwrap_or_else(|error| panic!("{who} got no answer: {error}"));
            if answer.status != 200 {
                let log = self.orders.access_log().await;
                let refused: Vec<_> = log.iter().filter(|line| line.get("status").is_some_and(|status| *status != 200)).collect();
                panic!("{who} got {}: {:#?}", answer.status, refused.last());
            }
            waited.push(asked.elapsed());
            if is_over.get() {
                return;
            }
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
        let ((closed, frames), mut waited) = self.meanwhile(self.send(flood, way, pace)).await;
        self.ask("the neighbour", self.plain, &mut waited.neighbour, &Cell::new(true)).await;
        let most = self.memory(if marked { "VmHWM:" } else { "VmRSS:" });
        Ridden { closed, frames, grown: most.saturating_sub(before), waited }
    }

    /// Sends a flood on a thread of its own, made ready beforehand: whoever sends it is another machine, and what that costs must
    /// not look like waiting for the agent. So the thread gives way to others a little, too.
    async fn send(&self, flood: &Flood, way: Way, pace: Pace) -> (bool, usize) {
        let frames = (0..TIMES).map(|at| flood.next(at)).collect();
        let prepared = Prepared { opening: flood.opening().to_vec(), frames, end: flood.end, pace, way };
        let (plain, mesh, peer) = (self.plain, self.orders.mesh, self.peer.clone());
        let (mut tell, told) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = rustix::process::nice(5);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let sending = async {
                let protocol = match way {
                    Way::Plaintext => return prepared.send(TcpStream::connect(plain).await.expect("a connection")).await,
                    Way::Http2 => MeshProtocol::Http2,
                    Way::Mesh => MeshProtocol::Mesh,
                };
                let expected = "spiffe://mesh.internal/ns/shop/sa/orders";
                let connected = peer.connect(mesh, "shop/orders", 80, protocol, expected).await;
                prepared.send(connected.expect("a mesh connection")).await
            };
            let sent = runtime.block_on(async {
                tokio::select! {
                    sent = sending => Some(sent),
                    // The test has failed.
                    () = tell.closed() => None,
                }
            });
            if let Some(sent) = sent {
                let _ = tell.send(sent);
            }
        });
        told.await.expect("the flood was sent")
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

/// A flood that is ready to be sent.
struct Prepared {
    opening: Vec<u8>,
    frames: Vec<Vec<u8>>,
    end: End,
    pace: Pace,
    way: Way,
}

impl Prepared {
    /// Sends it while what comes back is read. Whether the agent ended the connection, and after how many frames.
    async fn send(&self, io: impl AsyncRead + AsyncWrite) -> (bool, usize) {
        let (mut read, mut write) = tokio::io::split(io);
        let mut count = 0;
        let sending = async {
            write.write_all(&self.opening).await?;
            for (at, next) in self.frames.iter().enumerate() {
                write.write_all(next).await?;
                count += frames(self.way, next);
                if self.pace == Pace::Slow && at % 10 == 9 {
                    write.flush().await?;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            write.flush().await?;
            // What a slow agent still has to read.
            let rest = if self.end == End::Closed { Duration::from_secs(10) } else { Duration::from_millis(100) };
            tokio::time::sleep(rest).await;
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
}
