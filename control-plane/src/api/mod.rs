//! The doors: gRPC over TLS for agents, a unix socket for operators.

mod admin;
mod admin_words;
mod config;
mod identity;
mod listener;
mod operators;
mod rotation;
mod socket;
mod telemetry;
mod tls;
mod tokens;
mod trial;
mod trust;

use outrider_proto::v1::{
    admin_server::AdminServer, config_server::ConfigServer, identity_server::IdentityServer, operator_server::OperatorServer,
    telemetry_server::TelemetryServer,
};
use std::time::Duration;
use tonic::{Request, Status, transport::Server};

pub(crate) use admin::Operators;
pub(crate) use config::Subscriptions;
pub(crate) use identity::Identities;
pub(crate) use listener::{Connection, Entrance, accept};
pub(crate) use socket::{Operator, bind, operators};
pub(crate) use telemetry::Reports;
pub(crate) use tls::{Names, server_config};

use crate::{operators::GateLayer, peer::Peer};

/// Most bytes of a request for a leaf.
const ISSUE_LIMIT: usize = 16 * 1024;
/// Most bytes of an agent's message on its stream: a hello that names all it holds.
const SUBSCRIBE_LIMIT: usize = 8 * 1024 * 1024;
/// Most bytes of a batch of records.
const REPORT_LIMIT: usize = 4 * 1024 * 1024;
/// Bytes that a stream of an agent may have under way. One connection carries its configuration and its reports: what is reported
/// and waits for the store must not keep acknowledgements from coming.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same of a connection.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
/// Most bytes of an operator's call: several files.
const ADMIN_LIMIT: usize = 32 * 1024 * 1024;

/// The agents' services.
pub(crate) fn agents_router(
    identities: Identities,
    subscriptions: Subscriptions,
    reports: Reports,
) -> tonic::transport::server::Router {
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(20))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(32)
        .concurrency_limit_per_connection(32)
        .add_service(IdentityServer::new(identities).max_decoding_message_size(ISSUE_LIMIT))
        .add_service(
            ConfigServer::new(subscriptions).max_decoding_message_size(SUBSCRIBE_LIMIT).max_encoding_message_size(usize::MAX),
        )
        .add_service(TelemetryServer::new(reports).max_decoding_message_size(REPORT_LIMIT))
}

/// The operators' services, behind their gate.
pub(crate) fn operators_router(
    operators: Operators,
    gate: GateLayer,
) -> tonic::transport::server::Router<tower::layer::util::Stack<GateLayer, tower::layer::util::Identity>> {
    let logins = OperatorServer::new(operators.logins.clone()).max_decoding_message_size(ISSUE_LIMIT);
    let admin = AdminServer::new(operators).max_decoding_message_size(ADMIN_LIMIT).max_encoding_message_size(usize::MAX);
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(20))
        .layer(gate)
        .add_service(admin)
        .add_service(logins)
}

/// Who the connection's certificate names, if it has one.
fn peer<T>(request: &Request<T>) -> Option<&Peer> {
    request.extensions().get::<Connection>().and_then(|connection| connection.peer.as_deref())
}

/// Who the connection's certificate names.
pub(crate) fn known_peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    peer(request).cloned().ok_or_else(|| Status::unauthenticated("this call needs a client certificate"))
}

/// What a caller hears when we fail: the operator's log has the rest.
pub(crate) fn unavailable(what: &'static str, error: &(dyn std::error::Error + 'static)) -> Status {
    tracing::error!(what, error = outrider_runtime::tasks::chain(error), "call failed");
    Status::unavailable("the control plane cannot answer now")
}
