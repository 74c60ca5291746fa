//! Before each call of `Admin`: who calls, whether the role suffices, and afterwards an entry in the log if the call changes anything.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{Extensions, Request, Response},
};
use tower::{Layer, Service};

use super::{
    OperatorName, Role, Roster,
    role::{Call, Effect, find},
};
use crate::{
    api::{Connection, Operator},
    clock,
    registry::Revoked,
    store::{Author, Deed, Store},
};

/// What a call says about itself for the log, should it change nothing in the store: a change has its entry in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Note(Arc<Mutex<String>>);

impl Note {
    /// The note of a request.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// What the call is about.
    pub(crate) fn subject(&self, subject: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = subject.into();
    }

    fn read(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Who makes this call.
pub(crate) fn author<T>(request: &tonic::Request<T>) -> Author {
    let unknown = || Author::new("unknown".to_owned(), "", String::new());
    // The gate names everybody whom it lets in.
    request.extensions().get::<Author>().cloned().unwrap_or_else(unknown)
}

/// Guards the calls of `Admin`.
#[derive(Clone, Debug)]
pub(crate) struct GateLayer {
    roster: Roster,
    revoked: Revoked,
    store: Store,
}

impl GateLayer {
    /// A gate for the operators of this roster.
    pub(crate) fn new(roster: Roster, revoked: Revoked, store: Store) -> Self {
        Self { roster, revoked, store }
    }

    /// Who calls, and as what.
    async fn caller(&self, extensions: &Extensions) -> Result<(Author, Role), Status> {
        if let Some(Operator { uid }) = extensions.get::<Operator>() {
            let role = Role::Admin;
            return Ok((Author::new(format!("uid {uid}"), role.as_str(), "unix socket".to_owned()), role));
        }
        let connection = extensions.get::<Connection>();
        let peer = connection.and_then(|connection| connection.peer.as_deref());
        let name = peer.filter(|peer| clock::now() < peer.not_after).and_then(|peer| OperatorName::of(&peer.identity));
        let (Some(connection), Some(peer), Some(name)) = (connection, peer, name) else {
            return Err(Status::unauthenticated("this call needs an operator's certificate: `outrider login`"));
        };
        if self.revoked.holds(peer) {
            return Err(Status::permission_denied("this operator's certificate was revoked"));
        }
        let role = self.roster.role(&name).await.map_err(|error| {
            tracing::error!(error = outrider_runtime::tasks::chain(&error), "operator not looked up");
            Status::unavailable("the control plane cannot answer now")
        })?;
        let role = role.ok_or_else(|| Status::permission_denied("this operator was removed"))?;
        Ok((Author::new(peer.identity.to_string(), role.as_str(), connection.address.to_string()), role))
    }

    /// Puts a call on record, unless what it changed in the store has its entry there already.
    async fn log(&self, call: &Call, author: &Author, note: &Note, code: Code) {
        if call.effect == Effect::Looks {
            return;
        }
        let subject = note.read();
        let outcome = if code == Code::Ok { "ok".to_owned() } else { snake(code) };
        tracing::info!(call = call.name, who = author.who, outcome, subject, "operator's call");
        if code == Code::Ok && author.has_entered() {
            return;
        }
        let deed = Deed { author, call: call.name, subject: &subject };
        if let Err(error) = self.store.log_call(deed, &outcome, clock::now()).await {
            tracing::error!(error = outrider_runtime::tasks::chain(&error), "call not put on record");
        }
    }
}

/// `PermissionDenied` as `permission_denied`.
fn snake(code: Code) -> String {
    let mut text = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { layer: self.clone(), inner }
    }
}

/// The calls behind the gate.
#[derive(Clone, Debug)]
pub(crate) struct Gate<S> {
    layer: GateLayer,
    inner: S,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer<S::Error> {
        // The one that was asked whether it is ready is the one that is called.
        let waiting = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, waiting);
        let layer = self.layer.clone();
        Box::pin(async move {
            let path = request.uri().path();
            // Whoever logs in has no certificate yet; that service checks for itself.
            if path.starts_with("/outrider.v1.Operator/") {
                return inner.call(request).await;
            }
            let Some(call) = path.strip_prefix("/outrider.v1.Admin/").and_then(find) else {
                return Ok(Status::unimplemented("there is no such call").into_http());
            };
            let (mut parts, body) = request.into_parts();
            let (author, role) = match layer.caller(&parts.extensions).await {
                Ok(caller) => caller,
                Err(status) => return Ok(status.into_http()),
            };
            let note = Note::default();
            if role < call.role {
                let (is, needs) = (role.as_str(), call.role.as_str());
                let status =
                    Status::permission_denied(format!("`{}` needs the role {needs}, and this operator is {is}", call.name));
                layer.log(call, &author, &note, Code::PermissionDenied).await;
                return Ok(status.into_http());
            }
            parts.extensions.insert(note.clone());
            parts.extensions.insert(author.clone());
            let answer = inner.call(Request::from_parts(parts, body)).await;
            if let Ok(response) = &answer {
                let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
                layer.log(call, &author, &note, code).await;
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_words() {
        assert_eq!((snake(Code::PermissionDenied), snake(Code::NotFound)), ("permission_denied".into(), "not_found".into()));
    }
}
