//! The last step: what leaves towards the caller, with the request's id, and with nothing the caller should not learn.

use outrider_policy::ServiceName;

use super::{Reply, RequestHead, Response, grpc, h1::Switched};
use crate::{
    policy::Permit,
    refusal::{Reason, Refusal},
    tcp::Tunnel,
    telemetry::Record,
    upstream,
};

/// An answer from upstream. The permit rides on the body.
pub fn seal(mut response: Response, permit: Option<Permit>, mut record: Box<Record>) -> Reply {
    response.fields.set("x-request-id", record.id().as_bytes());
    record.status(response.status);
    // What the other agent refused; a program of gRPC never answers so.
    if response.status != 200 && record.is_for_grpc() {
        response = grpc::translate(response, record.id());
    }
    let Some(switched) = response.switched.take() else {
        return Reply { response, permit, record, tunnel: None };
    };
    let (Switched { io, already, lease }, tenure) = (*switched, response.tenure.clone());
    Reply { response, permit: None, record, tunnel: Some(Box::new(Tunnel { io, already, permit, tenure, lease })) }
}

/// A refusal: status and id for the caller, the rest for the record.
pub fn refused(refusal: &Refusal, mut record: Box<Record>) -> Reply {
    record.refused(refusal);
    let mut response = Response::refused(refusal, record.id());
    // The agent of the caller may try another endpoint when the program has seen nothing of it.
    let unsent = matches!(refusal.reason(), Reason::ConnectFailed | Reason::Overloaded | Reason::Draining);
    if unsent && record.is_for_an_agent() {
        response.fields.push(upstream::FIELD.as_bytes(), upstream::UNSENT);
    }
    if record.is_for_grpc() {
        response = grpc::translate(response, record.id());
    }
    Reply { response, permit: None, record, tunnel: None }
}

/// A request into a program must be meant for it. One that names another service of the mesh than its connection would be
/// decided by one service's policy and read by the program as a request for the other; CONNECT leads out of programs only.
///
/// # Errors
/// `misdirected`, `method_not_served`.
pub fn meant_for(head: &RequestHead, service: Option<&ServiceName>) -> Result<(), Refusal> {
    if head.method == http::Method::CONNECT {
        return Err(Refusal::new(Reason::MethodNotServed, "CONNECT into a program"));
    }
    match (head.host.service(), service) {
        (Some(named), Some(service)) if named != service => {
            let host = &head.host;
            Err(Refusal::new(
                Reason::Misdirected,
                format!("the host `{host}` means the service `{named}`, its connection is for `{service}`"),
            ))
        }
        _ => Ok(()),
    }
}
