//! A way to a server whose host may vanish: nobody says that a connection has ended, and none is refused.

use std::net::SocketAddr;

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Whether the host is there, and how often it has vanished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Host {
    away: bool,
    vanished: u64,
}

/// The way. It ends when it is dropped.
pub(crate) struct Vanishing {
    pub(crate) address: SocketAddr,
    host: watch::Sender<Host>,
    _accepting: JoinSet<()>,
}

impl Vanishing {
    pub(crate) async fn before(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let host = watch::Sender::default();
        let seen = host.subscribe();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(pass(near, upstream, seen.clone()));
            }
        });
        Self { address, host, _accepting: accepting }
    }

    /// Nothing passes any more, in either direction.
    pub(crate) fn vanish(&self) {
        self.host.send_modify(|host| *host = Host { away: true, vanished: host.vanished + 1 });
    }

    /// New connections pass. Of the old ones nobody knows anything.
    pub(crate) fn come_back(&self) {
        self.host.send_modify(|host| host.away = false);
    }
}

async fn pass(mut near: TcpStream, upstream: SocketAddr, mut host: watch::Receiver<Host>) {
    let began = *host.borrow();
    if !began.away
        && let Ok(mut far) = TcpStream::connect(upstream).await
    {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
            _ = host.wait_for(|host| host.vanished > began.vanished) => {}
        }
        std::future::pending::<()>().await;
    }
    std::future::pending::<()>().await;
}
