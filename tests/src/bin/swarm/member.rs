//! One simulated agent: it holds a stream, puts nothing in force and acknowledges everything, and comes back with hashes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use outrider_agent::identity::retry_after;
use outrider_proto::v1::{
    Ack, Hello, KnownResource, Protocol, ResourceKind, ServiceBacking, ServicePort, SubscribeRequest, Update,
    config_client::ConfigClient, subscribe_request::Message as Out, subscribe_response::Message as In,
    telemetry_client::TelemetryClient,
};
use outrider_tests::Identity;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::door::Door;

/// What a member tells the swarm.
#[derive(Clone, Copy, Debug)]
pub(crate) enum News {
    /// Its view is complete, or grew: it acknowledged this revision at this moment.
    Acknowledged { member: usize, revision: u64, at: Instant },
    /// It has no stream.
    Lost { member: usize },
}

/// An agent.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) number: usize,
    pub(crate) door: Door,
    pub(crate) identity: Identity,
    pub(crate) service: String,
    pub(crate) news: mpsc::UnboundedSender<News>,
    /// Hash of each resource it holds.
    pub(crate) held: BTreeMap<(i32, String), Vec<u8>>,
}

impl Member {
    /// Holds a stream until the swarm is gone; a lost one is opened again as an agent does it.
    pub(crate) async fn run(mut self) {
        let mut failures = 0;
        while !self.news.is_closed() {
            let acknowledged = self.follow().await.unwrap_or_default();
            if acknowledged {
                failures = 0;
                let _ = self.news.send(News::Lost { member: self.number });
            }
            failures += 1;
            tokio::time::sleep(retry_after(failures, fastrand::f64()).min(Duration::from_secs(30))).await;
        }
    }

    /// One stream to its end. Whether anything was acknowledged on it.
    async fn follow(&mut self) -> anyhow::Result<bool> {
        let channel = self.door.connect(Some(self.identity.clone())).await?;
        let (send, receive) = mpsc::channel(4);
        send.send(SubscribeRequest { message: Some(Out::Hello(self.hello())) }).await?;
        let mut updates = ConfigClient::new(channel.clone()).subscribe(ReceiverStream::new(receive)).await?.into_inner();
        // Agents report on the same connection, on a stream that stays open.
        let (_reports, reported) = mpsc::channel(1);
        let _answers = TelemetryClient::new(channel).report(ReceiverStream::new(reported)).await?;
        let mut acknowledged = false;
        // An error is the end of the stream.
        while let Ok(Some(message)) = updates.message().await {
            if let Some(In::Update(update)) = message.message {
                let ack = Ack { nonce: update.nonce, revision: update.revision };
                let complete = update.complete;
                self.take(update);
                let sent = send.send(SubscribeRequest { message: Some(Out::Ack(ack)) }).await;
                if sent.is_ok() && complete {
                    acknowledged = true;
                    let news = News::Acknowledged { member: self.number, revision: ack.revision, at: Instant::now() };
                    let _ = self.news.send(news);
                }
            }
        }
        Ok(acknowledged)
    }

    fn take(&mut self, update: Update) {
        for gone in update.removals {
            self.held.remove(&(gone.kind, gone.name));
        }
        for new in update.upserts {
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &new.body).as_ref().to_vec();
            self.held.insert((new.kind, new.name), hash);
        }
    }

    fn hello(&self) -> Hello {
        let known = self.held.iter().filter(|((kind, _), _)| *kind != i32::from(ResourceKind::Unspecified));
        Hello {
            agent_id: format!("00000000-0000-4000-8000-{:012x}", self.number),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: vec!["ServicePolicy/v1alpha1".to_owned(), "Service".to_owned(), "TrustBundle".to_owned()],
            services: vec![ServiceBacking {
                service: self.service.clone(),
                mesh_address: format!("127.0.0.1:{}", 1024 + self.number % 60_000),
                ports: vec![ServicePort { port: 80, protocol: Protocol::Http.into() }],
                ..ServiceBacking::default()
            }],
            known: known
                .map(|((kind, name), hash)| KnownResource { kind: *kind, name: name.clone(), hash: hash.clone() })
                .collect(),
            ..Hello::default()
        }
    }
}
