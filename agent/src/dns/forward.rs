//! Names outside of the mesh: which server may be asked for which of them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

use super::{Transport, message::Query};

/// How long another server may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Largest answer taken from another server.
const LARGEST: usize = 16 << 10;

/// A server that may be asked for names under a suffix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Lower case, without dots at its ends; empty for all names.
    suffix: String,
    /// Where it listens.
    pub server: SocketAddr,
}

impl FromStr for Forward {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (suffix, server) = text.split_once('=').unwrap_or(("", text));
        let suffix = suffix.trim_matches('.').to_ascii_lowercase();
        let plain = suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !plain || suffix.len() > 253 {
            return Err("the suffix is not a domain name");
        }
        let bare = || server.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
        let server = server.parse().or_else(|_| bare()).map_err(|_| "the server is not IP[:PORT]")?;
        Ok(Self { suffix, server })
    }
}

impl Forward {
    /// Of several servers the one with the longest suffix that `name` ends with.
    pub fn find<'a>(all: &'a [Self], name: &str) -> Option<&'a Self> {
        all.iter().filter(|each| each.covers(name)).max_by_key(|each| each.suffix.len())
    }

    fn covers(&self, name: &str) -> bool {
        let Some(before) = name.strip_suffix(self.suffix.as_str()) else { return false };
        self.suffix.is_empty() || before.is_empty() || before.ends_with('.')
    }

    /// Asks the server, by the way our caller asked us. What is no answer to this question is not taken.
    ///
    /// # Errors
    /// When the server cannot be reached, or does not answer in time.
    pub async fn ask(&self, query: &Query, transport: Transport) -> io::Result<Vec<u8>> {
        let asking = async {
            match transport {
                Transport::Udp => self.ask_udp(query).await,
                Transport::Tcp => self.ask_tcp(query).await,
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// From a port of its own and with an id of its own, so that an answer cannot be guessed; others are passed over.
    async fn ask_udp(&self, query: &Query) -> io::Result<Vec<u8>> {
        let local: SocketAddr = if self.server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(local).await?;
        socket.connect(self.server).await?;
        let id = id()?;
        socket.send(&query.ask(id)).await?;
        let mut buffer = vec![0; LARGEST];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if let Some(answer) = buffer.get(..length).and_then(|answer| query.relay(id, answer)) {
                return Ok(answer);
            }
        }
    }

    async fn ask_tcp(&self, query: &Query) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.server).await?;
        let id = id()?;
        let question = query.ask(id);
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        stream.write_all(&[length.to_be_bytes().as_slice(), &question].concat()).await?;
        let length = usize::from(stream.read_u16().await?);
        if length > LARGEST {
            return Err(io::Error::other("its answer is too long"));
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        query.relay(id, &answer).ok_or_else(|| io::Error::other("its answer is to another question"))
    }
}

/// An id that cannot be guessed.
fn id() -> io::Result<u16> {
    let mut bytes = [0; 2];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("no randomness"))?;
    Ok(u16::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_suffix_decides_and_covers_whole_labels() {
        let all: Vec<Forward> =
            ["10.0.0.1", "corp.example=10.0.0.2:5353", ".Example.=[::1]:53"].iter().map(|text| text.parse().unwrap()).collect();
        let find = |name: &str| Forward::find(&all, name).map(|each| each.server.to_string()).unwrap();
        assert_eq!(find("a.corp.example"), "10.0.0.2:5353");
        assert_eq!(find("corp.example"), "10.0.0.2:5353");
        assert_eq!(find("xcorp.example"), "[::1]:53");
        assert_eq!(find("example.org"), "10.0.0.1:53");
        assert_eq!(Forward::find(&all[1..], "example.org"), None);
        for wrong in ["", "x", "a b=10.0.0.1", "example=dns.example", "10.0.0.1:x"] {
            assert!(wrong.parse::<Forward>().is_err(), "{wrong}");
        }
    }
}
