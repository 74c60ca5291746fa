//! `Config`: takes an agent's hello and starts its stream ([`crate::push`]).

use std::time::Duration;

use outrider_proto::v1::{SubscribeRequest, SubscribeResponse, config_server::Config, subscribe_request::Message};
use outrider_runtime::Tasks;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{known_peer, unavailable};
use crate::{
    clock,
    peer::Peer,
    push::{Hello, Publication, Stream},
};

/// Time for the first message.
const HELLO: Duration = Duration::from_secs(10);

/// The service.
pub(crate) struct Subscriptions {
    pub(crate) publication: Publication,
    pub(crate) tasks: Tasks,
}

#[tonic::async_trait]
impl Config for Subscriptions {
    type SubscribeStream = ReceiverStream<Result<SubscribeResponse, Status>>;

    async fn subscribe(&self, request: Request<Streaming<SubscribeRequest>>) -> Result<Response<Self::SubscribeStream>, Status> {
        let peer = known_peer(&request)?;
        if peer.not_after <= clock::now() {
            return Err(Status::unauthenticated("the certificate of the connection has expired"));
        }
        let mut inbound = request.into_inner();
        let (out, outbound) = mpsc::channel(8);
        let publication = self.publication.clone();
        // The response's head must not wait for the hello: a client may wait for it before it sends anything.
        self.tasks.spawn_scoped(async move {
            // On the heap while it lasts: the stream rests for hours afterwards, and need not keep the room.
            match Box::pin(hello(&publication, &mut inbound, &peer)).await {
                Ok(hello) => match Box::pin(Stream::open(publication, hello, out.clone())).await {
                    Ok(stream) => stream.run(inbound, &peer).await,
                    Err(status) => refuse(&out, &peer, status),
                },
                Err(status) => refuse(&out, &peer, status),
            }
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

async fn hello(publication: &Publication, inbound: &mut Streaming<SubscribeRequest>, peer: &Peer) -> Result<Hello, Status> {
    let first = timeout(HELLO, inbound.message()).await;
    let first = first.map_err(|_| Status::invalid_argument(format!("no hello within {} s", HELLO.as_secs())))??;
    let Some(SubscribeRequest { message: Some(Message::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("the first message must be a hello"));
    };
    if hello.identity.as_ref().is_some_and(|status| status.identity != peer.identity.as_str()) {
        return Err(Status::permission_denied("the hello names another identity than this connection's certificate"));
    }
    let grants = publication.store.grants(&peer.identity).await.map_err(|error| unavailable("grants", &error))?;
    let held = publication.store.holds(&peer.serial, peer.identity.as_str(), &hello.agent_id).await;
    held.map_err(|error| unavailable("certificate's holder", &error))?;
    Hello::read(hello, &peer.identity, &grants, (peer.serial.clone(), peer.not_after))
}

fn refuse(out: &mpsc::Sender<Result<SubscribeResponse, Status>>, peer: &Peer, status: Status) {
    tracing::warn!(identity = %peer.identity, reason = status.message(), "stream refused");
    // The queue is empty: nothing was sent yet.
    let _ = out.try_send(Err(status));
}
