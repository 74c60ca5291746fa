//! Active health checks: a request to each endpoint now and then, where a route asks for them. What the endpoints answer says
//! whether requests go there; with most of them sick they go to all.

use std::rc::Rc;

use outrider_policy::route::HealthCheck;

use super::{
    Upstreams,
    fleet::{Chosen, Fleet},
    lease::StreamLease,
};
use crate::http::{Body, Fields, RequestHead, Version, normalize::new_request_id};

/// Frames of an answer that are read so that its connection can be used again.
const READ: usize = 16;

/// Answers in a row, all good or all bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Streak {
    good: u32,
    bad: u32,
}

impl Streak {
    /// One more answer. Returns whether the endpoint is sick now, when there are enough of a kind to say so.
    pub(super) fn note(&mut self, good: bool, check: &HealthCheck) -> Option<bool> {
        *self = if good {
            Self { good: self.good.saturating_add(1), bad: 0 }
        } else {
            Self { good: 0, bad: self.bad.saturating_add(1) }
        };
        match (self.good >= check.healthy, self.bad >= check.unhealthy) {
            (true, _) => Some(false),
            (_, true) => Some(true),
            _ => None,
        }
    }
}

impl Upstreams {
    /// Asks each endpoint of a service how it is.
    pub(super) fn probe(self: &Rc<Self>, fleet: &Rc<Fleet>, check: &HealthCheck) {
        for place in fleet.all() {
            let (own, fleet, check) = (self.clone(), fleet.clone(), check.clone());
            self.tasks.spawn_scoped_local(async move {
                let good = tokio::time::timeout(check.timeout, own.is_well(&place, &check)).await.unwrap_or(false);
                fleet.probed(&place, good, &check);
            });
        }
    }

    async fn is_well(&self, place: &Chosen, check: &HealthCheck) -> bool {
        let stop = &place.what;
        let super::pool::Key::Mesh { service, .. } = &stop.slot.key else { return false };
        let head = Rc::new(RequestHead {
            method: http::Method::GET,
            target: check.path.clone(),
            path_len: check.path.len(),
            host: service.host().as_str().into(),
            host_port: None,
            fields: Fields::default(),
            version: Version::Http11,
            id: new_request_id(),
            upgrade: None,
            trace: None,
        });
        let mut added = Fields::default();
        added.push(b"x-request-id", head.id.as_bytes());
        let stream = StreamLease::take(&Rc::default(), None);
        let answered = self.exchange_mesh((&stop.slot, &stop.endpoint), &head, &added, Body::Empty, stream).await;
        let Ok(mut response) = answered else { return false };
        for _ in 0..READ {
            if !matches!(response.body.frame().await, Ok(Some(_))) {
                break;
            }
        }
        // Whoever refuses the check by policy is there and well.
        response.status < 500
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_takes_several_answers_of_a_kind_to_change_what_is_thought_of_an_endpoint() {
        let check = HealthCheck {
            path: "/".to_owned(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy: 3,
            healthy: 2,
        };
        let mut streak = Streak::default();
        let found = [false, false, true, false, false, false, true, true].map(|good| streak.note(good, &check));
        assert_eq!(found, [None, None, None, None, None, Some(true), None, Some(false)]);
    }
}
