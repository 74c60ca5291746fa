//! The book of one agent: what it has acknowledged, what is on the way, what it refused. No I/O, no clock.

use std::collections::BTreeMap;

use outrider_proto::v1;

use crate::compile::{Key, View};

type Hashes = BTreeMap<Key, [u8; 32]>;

/// What to do next.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// The agent must answer first, or refused exactly this already.
    Wait,
    /// The agent's view is what it holds: this revision is in force without a word.
    InForce(u64),
    /// Send this.
    Send(v1::Update),
}

/// An answer that fits nothing on the way.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("answer to update {0}, which is not on the way")]
pub(crate) struct StrayAnswer(pub(crate) u64);

/// The book.
///
/// An agent refuses updates whole. So that one policy that it cannot read does not keep endpoints and trust anchors from
/// it, the policies that it refused are held back, and everything else goes on without them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    held: Hashes,
    on_the_way: Option<Sent>,
    refused: Option<Refused>,
    /// Revision of the last whole view that was acknowledged on this stream.
    acknowledged: Option<u64>,
    nonce: u64,
}

#[derive(Debug)]
struct Sent {
    nonce: u64,
    revision: u64,
    /// What the agent holds when it puts this in force.
    target: Hashes,
    /// The policies that were wanted.
    policies: Hashes,
    /// Whether nothing was held back.
    whole: bool,
}

/// Neither of these is sent again.
#[derive(Debug)]
struct Refused {
    target: Hashes,
    policies: Hashes,
}

impl Ledger {
    /// A book that begins with what the agent says it holds.
    pub(crate) fn new(known: impl IntoIterator<Item = (Key, [u8; 32])>) -> Self {
        Self { held: known.into_iter().collect(), ..Self::default() }
    }

    /// Whether nothing is on the way.
    pub(crate) fn is_idle(&self) -> bool {
        self.on_the_way.is_none()
    }

    /// What to do so that the agent comes to hold `view`.
    pub(crate) fn step(&mut self, view: &View, revision: u64) -> Step {
        if self.on_the_way.is_some() {
            return Step::Wait;
        }
        let wanted: Hashes = view.iter().map(|(key, resource)| (key.clone(), resource.hash)).collect();
        // The first update is sent even when it is empty: it says that the view is complete.
        if self.acknowledged.is_some() && self.held == wanted {
            self.refused = None;
            self.acknowledged = Some(revision);
            return Step::InForce(revision);
        }
        let policies = policies(&wanted).collect();
        let target = match &self.refused {
            Some(refused) if refused.policies == policies => self.without_policies(&wanted),
            _ => wanted.clone(),
        };
        let whole = target == wanted;
        let nothing_new = !whole && target == self.held;
        if nothing_new || self.refused.as_ref().is_some_and(|refused| refused.target == target) {
            return Step::Wait;
        }
        let revision = if whole { revision } else { self.acknowledged.unwrap_or(0) };
        self.nonce += 1;
        let update = self.update(view, &target, revision, whole);
        self.on_the_way = Some(Sent { nonce: self.nonce, revision, target, policies, whole });
        Step::Send(update)
    }

    /// The wanted view, with the policies that are held already.
    fn without_policies(&self, wanted: &Hashes) -> Hashes {
        let others = wanted.iter().filter(|((kind, _), _)| !is_written(*kind));
        policies(&self.held).chain(others.map(|(key, hash)| (key.clone(), *hash))).collect()
    }

    fn update(&self, view: &View, target: &Hashes, revision: u64, whole: bool) -> v1::Update {
        let differs = |key: &Key, hash: &[u8; 32]| target.get(key) == Some(hash) && self.held.get(key) != Some(hash);
        let upserts = view.iter().filter(|(key, resource)| differs(key, &resource.hash));
        let removals = self.held.keys().filter(|key| !target.contains_key(key));
        v1::Update {
            nonce: self.nonce,
            revision,
            upserts: upserts
                .map(|(_, resource)| v1::Resource {
                    kind: resource.kind.into(),
                    name: resource.name.clone(),
                    revision: resource.revision,
                    body: resource.body.clone(),
                })
                .collect(),
            removals: removals.map(|(kind, name)| v1::ResourceName { kind: (*kind).into(), name: name.clone() }).collect(),
            complete: whole || self.acknowledged.is_some(),
        }
    }

    /// The agent put it in force. Returns the revision, if nothing was held back.
    pub(crate) fn ack(&mut self, nonce: u64) -> Result<Option<u64>, StrayAnswer> {
        let sent = self.answered(nonce)?;
        self.held = sent.target;
        if !sent.whole {
            return Ok(None);
        }
        self.refused = None;
        self.acknowledged = Some(sent.revision);
        Ok(self.acknowledged)
    }

    /// The agent refused it: what it held before still is in force. Returns the revision.
    pub(crate) fn nack(&mut self, nonce: u64) -> Result<u64, StrayAnswer> {
        let sent = self.answered(nonce)?;
        self.refused = Some(Refused { target: sent.target, policies: sent.policies });
        Ok(sent.revision)
    }

    fn answered(&mut self, nonce: u64) -> Result<Sent, StrayAnswer> {
        self.on_the_way.take_if(|sent| sent.nonce == nonce).ok_or(StrayAnswer(nonce))
    }
}

fn policies(of: &Hashes) -> impl Iterator<Item = (Key, [u8; 32])> + '_ {
    of.iter().filter(|((kind, _), _)| is_written(*kind)).map(|(key, hash)| (key.clone(), *hash))
}

/// What operators write, and an agent may not be able to read.
fn is_written(kind: v1::ResourceKind) -> bool {
    matches!(kind, v1::ResourceKind::ServicePolicy | v1::ResourceKind::Route)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::registry::Encoded;

    fn view(policies: &[(&str, &str)]) -> View {
        let encode = |(name, json): &(&str, &str)| {
            let body = v1::ServicePolicyBody { json: (*json).to_owned() };
            let kind = v1::ResourceKind::ServicePolicy;
            ((kind, (*name).to_owned()), Arc::new(Encoded::new(kind, (*name).to_owned(), 1, &body)))
        };
        policies.iter().map(encode).collect()
    }

    fn sent(step: Step) -> v1::Update {
        match step {
            Step::Send(update) => update,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn changes_while_an_update_is_on_the_way_become_one_update() {
        let mut ledger = Ledger::default();
        let first = sent(ledger.step(&view(&[("a/x", "1")]), 1));
        assert_eq!(ledger.step(&view(&[("a/x", "2")]), 2), Step::Wait);
        assert_eq!(ledger.step(&view(&[("a/x", "3"), ("a/y", "1")]), 3), Step::Wait);
        assert_eq!(ledger.ack(first.nonce), Ok(Some(1)));
        let second = sent(ledger.step(&view(&[("a/x", "3"), ("a/y", "1")]), 3));
        assert_eq!((second.revision, second.upserts.len(), second.removals.len()), (3, 2, 0));
    }

    #[test]
    fn what_the_agent_holds_from_before_is_not_sent_again() {
        let before = view(&[("a/x", "1"), ("a/gone", "1")]);
        let known = before.iter().map(|(key, resource)| (key.clone(), resource.hash));
        let mut ledger = Ledger::new(known);
        let update = sent(ledger.step(&view(&[("a/x", "1"), ("a/y", "1")]), 5));
        assert_eq!(update.upserts.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["a/y"]);
        assert_eq!(update.removals.iter().map(|name| name.name.as_str()).collect::<Vec<_>>(), ["a/gone"]);
        assert!(update.complete);
    }

    #[test]
    fn the_first_update_is_sent_even_when_it_is_empty() {
        let same = view(&[("a/x", "1")]);
        let mut ledger = Ledger::new(same.iter().map(|(key, resource)| (key.clone(), resource.hash)));
        let update = sent(ledger.step(&same, 4));
        assert!(update.complete && update.upserts.is_empty() && update.removals.is_empty());
        assert_eq!(ledger.ack(update.nonce), Ok(Some(4)));
        assert_eq!(ledger.step(&same, 9), Step::InForce(9));
    }

    #[test]
    fn a_refused_view_is_not_repeated_and_the_next_one_starts_from_what_is_held() {
        let mut ledger = Ledger::default();
        let first = sent(ledger.step(&view(&[("a/x", "1")]), 1));
        ledger.ack(first.nonce).unwrap();
        let bad = sent(ledger.step(&view(&[("a/x", "bad")]), 2));
        assert_eq!(ledger.nack(bad.nonce), Ok(2));
        assert_eq!(ledger.step(&view(&[("a/x", "bad")]), 3), Step::Wait);
        assert_eq!(ledger.step(&view(&[("a/x", "1")]), 4), Step::InForce(4));
        let next = sent(ledger.step(&view(&[("a/x", "good")]), 5));
        assert_eq!(next.upserts.len(), 1);
    }

    #[test]
    fn a_policy_that_is_refused_does_not_keep_endpoints_from_the_agent() {
        let with = |policy: &str, endpoint: &str| {
            let mut view = view(&[("a/x", policy)]);
            let service = v1::Service { name: endpoint.to_owned(), ..v1::Service::default() };
            let encoded = Encoded::new(v1::ResourceKind::Service, "a/s".to_owned(), 1, &service);
            view.insert((v1::ResourceKind::Service, "a/s".to_owned()), Arc::new(encoded));
            view
        };
        let mut ledger = Ledger::default();
        let first = sent(ledger.step(&with("1", "one"), 1));
        ledger.ack(first.nonce).unwrap();
        let bad = sent(ledger.step(&with("bad", "one"), 2));
        ledger.nack(bad.nonce).unwrap();
        let endpoint = sent(ledger.step(&with("bad", "two"), 3));
        assert_eq!(endpoint.upserts.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["a/s"]);
        assert_eq!((endpoint.revision, endpoint.complete), (1, true));
        assert_eq!(ledger.ack(endpoint.nonce), Ok(None), "the refused policy is not in force");
        assert_eq!(ledger.step(&with("bad", "two"), 3), Step::Wait);
        let good = sent(ledger.step(&with("good", "two"), 4));
        assert_eq!(good.upserts.len(), 1);
        assert_eq!(ledger.ack(good.nonce), Ok(Some(4)));
    }

    #[test]
    fn when_the_first_view_is_refused_the_rest_of_it_comes_but_is_not_called_complete() {
        let mut ledger = Ledger::default();
        let mut all = view(&[("a/x", "bad")]);
        let bundle = v1::TrustBundle::default();
        let kind = v1::ResourceKind::TrustBundle;
        all.insert((kind, "td".to_owned()), Arc::new(Encoded::new(kind, "td".to_owned(), 0, &bundle)));
        let first = sent(ledger.step(&all, 1));
        ledger.nack(first.nonce).unwrap();
        let rest = sent(ledger.step(&all, 1));
        assert_eq!((rest.upserts.len(), rest.upserts[0].name.as_str(), rest.complete), (1, "td", false));
        ledger.nack(rest.nonce).unwrap();
        assert_eq!(ledger.step(&all, 1), Step::Wait);
    }

    #[test]
    fn an_answer_to_something_else_is_an_error() {
        let mut ledger = Ledger::default();
        let first = sent(ledger.step(&view(&[]), 1));
        assert_eq!(ledger.ack(first.nonce + 1), Err(StrayAnswer(first.nonce + 1)));
        ledger.ack(first.nonce).unwrap();
        assert_eq!(ledger.nack(first.nonce), Err(StrayAnswer(first.nonce)));
    }
}
