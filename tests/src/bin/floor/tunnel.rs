//! The floor: TCP over mutual TLS, a TLS connection for each plain one, nothing read.

use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{End, Side, tls};

const BUFFER: usize = 16 << 10;

/// Runs one end for ever.
pub(crate) async fn run(end: End) -> anyhow::Result<()> {
    let listener = TcpListener::bind(end.listen).await?;
    let (connector, acceptor) = (tls::client(&end.certificates, &[])?, tls::server(&end.certificates, &[])?);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((near, _)) = listener.accept().await else { continue };
        let _ = near.set_nodelay(true);
        let (connector, acceptor) = (connector.clone(), acceptor.clone());
        connections.spawn(async move {
            let far = TcpStream::connect(end.connect);
            match end.side {
                Side::Client => {
                    let far = far.await?;
                    far.set_nodelay(true)?;
                    let name = tls::NAME.try_into().map_err(std::io::Error::other)?;
                    carry(near, connector.connect(name, far).await?).await
                }
                Side::Server => {
                    let near = acceptor.accept(near).await?;
                    let far = far.await?;
                    far.set_nodelay(true)?;
                    carry(near, far).await
                }
            }
        });
    }
}

async fn carry(
    mut near: impl AsyncRead + AsyncWrite + Unpin,
    mut far: impl AsyncRead + AsyncWrite + Unpin,
) -> std::io::Result<()> {
    copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await.map(drop)
}
