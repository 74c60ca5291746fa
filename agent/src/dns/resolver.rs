//! What a captured program is told of a name.

use std::sync::Arc;

use super::{
    Addresses, Forward, Transport,
    message::{Code, Query, Unreadable, unreadable},
};
use crate::{http::service_of, route::Directory};

/// Seconds that a program may keep an answer. Addresses stay; whether a service exists may change.
const TTL: u32 = 10;
/// Names under these are the mesh's, also when there is no such service.
const ZONES: [&str; 3] = ["mesh.internal", "cluster.local", "svc"];

/// Answers questions.
#[derive(Debug)]
pub struct Resolver {
    /// Services there are.
    pub directory: Arc<Directory>,
    /// Their virtual addresses.
    pub addresses: Arc<Addresses>,
    /// Who is asked for names outside of the mesh.
    pub forward: Vec<Forward>,
}

impl Resolver {
    /// The answer to a message; none for what deserves none.
    pub async fn respond(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = match Query::read(message) {
            Ok(query) => query,
            Err(Unreadable::Silent) => return None,
            Err(Unreadable::Answer { id, opcode, code }) => return Some(unreadable(id, opcode, code)),
        };
        let answer = self.answer(&query, transport).await;
        Some(match transport {
            Transport::Udp => query.fit_udp(answer),
            Transport::Tcp => answer,
        })
    }

    async fn answer(&self, query: &Query, transport: Transport) -> Vec<u8> {
        if !query.is_internet() {
            return query.answer(Code::Refused);
        }
        let service = query.is_plain.then(|| service_of(&query.name)).flatten();
        if let Some(service) = &service {
            match self.directory.find(service).await {
                Ok(_) => {
                    let pair = self.addresses.of(service);
                    return pair.map_or_else(|| query.answer(Code::ServerFailure), |pair| query.addresses(pair.v4, pair.v6, TTL));
                }
                // A name that may be a service's is shown to nobody outside.
                Err(_) if !self.directory.is_denied(service) => return query.answer(Code::ServerFailure),
                Err(_) => {}
            }
        }
        if let Some(forward) = Forward::find(&self.forward, &query.name) {
            return forward.ask(query, transport).await.unwrap_or_else(|error| {
                tracing::debug!(%error, server = %forward.server, name = %query.name, "name not resolved");
                query.answer(Code::ServerFailure)
            });
        }
        // "No such name" lets a program go on through its search list; "refused" says that nobody was asked.
        let ours = service.is_some() || ZONES.iter().any(|zone| is_under(&query.name, zone));
        query.answer(if ours { Code::NoSuchName } else { Code::Refused })
    }
}

fn is_under(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_holds_what_ends_in_it_after_a_dot() {
        assert!(is_under("x.cluster.local", "cluster.local") && !is_under("xcluster.local", "cluster.local"));
    }
}
