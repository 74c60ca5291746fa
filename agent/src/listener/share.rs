//! How the workers share out the connections to an address. The system spreads them by a hash: few connections, as between two
//! agents, may all come to one worker while another has nothing to do. So whoever accepts one more than the least busy worker
//! has gives it to that one.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use outrider_runtime::drain::Hold;
use tokio::{net::TcpStream, sync::mpsc};

use super::{Accepted, Place};

/// Connections that may wait for a worker to take them.
const GIVEN: usize = 64;

/// A worker's listening socket at an address, and its share of the connections to it.
#[derive(Debug)]
pub struct Door {
    pub(super) socket: TcpListener,
    pub(super) share: Share,
}

impl Door {
    /// The socket alone, where there is one worker only.
    pub fn into_socket(self) -> TcpListener {
        self.socket
    }
}

/// A worker's share.
#[derive(Debug)]
pub(super) struct Share {
    own: usize,
    seats: Arc<[Seat]>,
    given: mpsc::Receiver<Given>,
}

/// What the other workers know of a worker.
#[derive(Debug)]
struct Seat {
    open: AtomicUsize,
    give: mpsc::Sender<Given>,
}

/// Counts a connection as one of a worker's; dropped, it is none any more.
#[derive(Debug)]
pub(super) struct Taken {
    seats: Arc<[Seat]>,
    at: usize,
}

/// A connection on its way to another worker.
#[derive(Debug)]
pub(super) struct Given {
    stream: std::net::TcpStream,
    address: SocketAddr,
    hold: Hold,
    place: Place,
    taken: Taken,
}

impl Taken {
    fn new(seats: &Arc<[Seat]>, at: usize) -> Self {
        if let Some(seat) = seats.get(at) {
            seat.open.fetch_add(1, Relaxed);
        }
        Self { seats: seats.clone(), at }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(seat) = self.seats.get(self.at) {
            seat.open.fetch_sub(1, Relaxed);
        }
    }
}

impl Share {
    /// One for each of so many workers.
    pub(super) fn among(workers: usize) -> Vec<Self> {
        let (seats, given): (Vec<Seat>, Vec<_>) = (0..workers)
            .map(|_| {
                let (give, given) = mpsc::channel(GIVEN);
                (Seat { open: AtomicUsize::new(0), give }, given)
            })
            .unzip();
        let seats: Arc<[Seat]> = seats.into();
        given.into_iter().enumerate().map(|(own, given)| Self { own, seats: seats.clone(), given }).collect()
    }

    /// The worker with the fewest connections: this one unless another has fewer.
    fn idlest(&self) -> usize {
        let open = |at: usize| self.seats.get(at).map_or(usize::MAX, |seat| seat.open.load(Relaxed));
        (0..self.seats.len()).fold(self.own, |idlest, at| if open(at) < open(idlest) { at } else { idlest })
    }

    /// Gives a connection to the worker that has the fewest; what comes back is for this one.
    ///
    /// # Errors
    /// When the connection broke on its way out of this worker's hands.
    pub(super) fn out(&self, stream: TcpStream, address: SocketAddr, hold: Hold, place: Place) -> io::Result<Option<Accepted>> {
        let idlest = self.idlest();
        let permit = (idlest != self.own).then(|| self.seats.get(idlest)?.give.try_reserve().ok()).flatten();
        // A worker that takes no more, or not fast enough, is no help.
        let Some(permit) = permit else {
            return Ok(Some(Accepted { stream, address, _hold: hold, _place: place, _taken: Taken::new(&self.seats, self.own) }));
        };
        let taken = Taken::new(&self.seats, idlest);
        permit.send(Given { stream: stream.into_std()?, address, hold, place, taken });
        Ok(None)
    }

    /// The next connection that another worker gave.
    pub(super) async fn given(&mut self) -> Given {
        match self.given.recv().await {
            Some(given) => given,
            // Nobody can give any more.
            None => std::future::pending().await,
        }
    }

    /// Takes no more, and hands out what is on its way.
    pub(super) fn close(&mut self) -> impl Iterator<Item = Given> {
        self.given.close();
        std::iter::from_fn(|| self.given.try_recv().ok())
    }
}

impl Given {
    /// Takes it into this worker's hands.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(super) fn take(self) -> io::Result<Accepted> {
        let Self { stream, address, hold, place, taken } = self;
        Ok(Accepted { stream: TcpStream::from_std(stream)?, address, _hold: hold, _place: place, _taken: taken })
    }
}
