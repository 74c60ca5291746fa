//! Opaque bytes, both ways, for as long as the permit holds.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional_with_sizes};

use crate::{
    http::SharedIo,
    policy::{Permit, lapsed},
    refusal::Reason,
    telemetry::Record,
    tls::Tenure,
    upstream::Lease,
};

/// Bytes held for each direction of a relay.
const BUFFER: usize = 16 << 10;

/// The far end of an opaque connection.
#[derive(Debug)]
pub struct Tunnel {
    /// The connection to the far end.
    pub io: SharedIo,
    /// What the far end has said already.
    pub already: BytesMut,
    /// Ends the relay when it no longer holds.
    pub permit: Option<Permit>,
    /// Of the connection to the far end; the relay ends with it.
    pub tenure: Option<Tenure>,
    /// The place at the endpoint of a connection that began with HTTP.
    pub lease: Option<Lease>,
}

impl Tunnel {
    /// A tunnel over a fresh connection.
    pub fn new(io: SharedIo, permit: Option<Permit>, tenure: Option<Tenure>) -> Self {
        Self { io, already: BytesMut::new(), permit, tenure, lease: None }
    }
}

impl Tunnel {
    /// Carries bytes between `near` and the far end until both directions have ended, one fails, or the permit ends.
    /// `already` is what the near end sent before.
    pub async fn relay(self, mut near: SharedIo, already: BytesMut, mut record: Box<Record>) {
        let Self { io: mut far, already: greeting, mut permit, tenure, lease: _lease } = self;
        let relay = async {
            near.write_all(&greeting).await?;
            near.flush().await?;
            far.write_all(&already).await?;
            far.flush().await?;
            let (_, sent) = copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await?;
            Ok::<u64, io::Error>(sent)
        };
        let outcome = tokio::select! {
            outcome = relay => outcome,
            refusal = lapsed(permit.as_mut(), tenure.as_ref(), None) => return record.refused(&refusal),
        };
        match outcome {
            Ok(sent) => record.sent(usize::try_from(sent).unwrap_or(usize::MAX)),
            Err(error) => record.broke(Reason::UpstreamFailed, error.to_string()),
        }
    }
}
