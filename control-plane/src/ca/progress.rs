//! What a phase of the change of the trust anchor waits for. No I/O, no clock.

use std::collections::BTreeMap;

use super::Phase;
use crate::store::{HeldRow, OpenTokens, RotationRow};

/// An agent that is connected, as it said itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) agent_id: String,
    pub(crate) identity: String,
    /// Serial of the certificate that it holds now.
    pub(crate) serial: String,
    /// Revision in force there.
    pub(crate) in_force: u64,
    /// Why it refused what it was sent last; empty when it did not.
    pub(crate) refused: String,
}

/// Who keeps a rotation waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Empty when nobody said to hold the certificate.
    pub(crate) agent_id: String,
    pub(crate) identity: String,
    pub(crate) reason: String,
}

/// How far a phase is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Agents that must follow.
    pub(crate) agents: usize,
    /// Those of them that did not yet.
    pub(crate) laggards: Vec<Waiting>,
    /// What else is waited for.
    pub(crate) others: Vec<String>,
    /// Who would be waited for, had the operator not said otherwise.
    pub(crate) skipped: Vec<Waiting>,
    /// Ids of connected agents that hold a leaf of the old root.
    pub(crate) to_renew: Vec<String>,
}

impl Progress {
    /// Whether nothing is waited for.
    pub(crate) fn is_clear(&self) -> bool {
        self.laggards.is_empty() && self.others.is_empty()
    }
}

/// What is known when somebody looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) row: &'a RotationRow,
    /// Leaves that are valid and that somebody may hold.
    pub(crate) held: &'a [HeldRow],
    pub(crate) present: &'a [Present],
    /// Join tokens that pin the old root and are still good.
    pub(crate) tokens: &'a [OpenTokens],
    /// Replicas without an issuing CA of the new root.
    pub(crate) without_issuer: &'a [String],
    /// Unix seconds.
    pub(crate) now: i64,
}

/// Looks how far the present phase is.
pub(crate) fn progress(facts: &Facts<'_>) -> Progress {
    let present: BTreeMap<&str, &Present> = facts.present.iter().map(|one| (one.agent_id.as_str(), one)).collect();
    match facts.row.phase {
        Phase::Prepared | Phase::Done | Phase::Aborted => Progress::default(),
        Phase::Distributing => {
            let mut progress = acknowledged(facts);
            for held in facts.held.iter().filter(|held| !present.contains_key(held.agent_id.as_str())) {
                away(&mut progress, held, facts);
            }
            progress
        }
        Phase::Issuing => {
            let waits = |id: &String| format!("replica {id} has no issuing CA below the new root yet");
            Progress { others: facts.without_issuer.iter().map(waits).collect(), ..renewed(facts, &present) }.only_others()
        }
        Phase::Proving => {
            let mut progress = renewed(facts, &present);
            for open in facts.tokens {
                unused(&mut progress, open, facts);
            }
            progress
        }
        Phase::Retiring => acknowledged(facts),
    }
}

impl Progress {
    /// Agents are asked already, but not waited for.
    fn only_others(self) -> Self {
        Self { laggards: Vec::new(), skipped: Vec::new(), agents: 0, ..self }
    }

    /// Somebody who is not connected is waited for, unless the operator said otherwise.
    fn wait_for(&mut self, one: Waiting, facts: &Facts<'_>) {
        if facts.row.skip_away {
            self.skipped.push(one);
        } else {
            self.agents += 1;
            self.laggards.push(one);
        }
    }
}

/// Connected agents that have the bundle in force.
fn acknowledged(facts: &Facts<'_>) -> Progress {
    let late = facts.present.iter().filter(|one| one.in_force < facts.row.revision);
    let laggards = late.map(|one| waiting(one, &one.refused)).collect();
    Progress { agents: facts.present.len(), laggards, ..Progress::default() }
}

/// Whoever holds a leaf: those of the old root are waited for.
fn renewed(facts: &Facts<'_>, present: &BTreeMap<&str, &Present>) -> Progress {
    let mut progress = Progress { agents: facts.present.len(), ..Progress::default() };
    for held in facts.held.iter().filter(|held| held.root == facts.row.old_root) {
        match present.get(held.agent_id.as_str()) {
            Some(one) if one.serial == held.serial => {
                progress.laggards.push(waiting(one, ""));
                progress.to_renew.push(one.agent_id.clone());
            }
            // It holds another one by now.
            Some(_) => {}
            None => away(&mut progress, held, facts),
        }
    }
    progress
}

/// Nobody knows whether the holder of this leaf still uses it. When it has ended, nobody does.
fn away(progress: &mut Progress, held: &HeldRow, facts: &Facts<'_>) {
    let left = held.not_after - facts.now;
    let reason = format!("not connected: its certificate {} ends in {left} s", held.serial);
    let one = Waiting { agent_id: held.agent_id.clone(), identity: held.identity.clone(), reason };
    progress.wait_for(one, facts);
}

/// Whoever holds these tokens knows the control plane by the old root alone, and could not join any more.
fn unused(progress: &mut Progress, open: &OpenTokens, facts: &Facts<'_>) {
    let left = open.ends - facts.now;
    let account = open.identity.rsplit_once("/ns/").map(|(_, rest)| rest.replacen("/sa/", "/", 1)).unwrap_or_default();
    let reason = format!(
        "{} unused join tokens name the old root, the last ends in {left} s: `outrider token revoke {account}` takes them back",
        open.count
    );
    progress.wait_for(Waiting { agent_id: String::new(), identity: open.identity.clone(), reason }, facts);
}

fn waiting(one: &Present, reason: &str) -> Waiting {
    Waiting { agent_id: one.agent_id.clone(), identity: one.identity.clone(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(phase: Phase) -> RotationRow {
        RotationRow {
            phase,
            goal: Phase::Done,
            old_root: "old".into(),
            new_root: "new".into(),
            started: 0,
            phase_started: 0,
            revision: 7,
            skip_away: false,
        }
    }

    fn held(agent: &str, serial: &str, root: &str) -> HeldRow {
        HeldRow { serial: serial.into(), identity: "web".into(), agent_id: agent.into(), not_after: 100, root: root.into() }
    }

    fn present(agent: &str, serial: &str, in_force: u64) -> Present {
        Present { agent_id: agent.into(), identity: "web".into(), serial: serial.into(), in_force, refused: String::new() }
    }

    fn look(row: &RotationRow, held: &[HeldRow], present: &[Present]) -> Progress {
        progress(&Facts { row, held, present, tokens: &[], without_issuer: &[], now: 40 })
    }

    #[test]
    fn the_bundle_is_distributed_when_whoever_holds_a_certificate_has_acknowledged_it() {
        let row = row(Phase::Distributing);
        let held = [held("a", "1", "old"), held("b", "2", "old")];
        let both = look(&row, &held, &[present("a", "1", 6)]);
        assert_eq!((both.agents, both.laggards.len()), (2, 2));
        assert!(both.laggards[1].reason.contains("ends in 60 s"), "{both:?}");
        assert_eq!(look(&row, &held, &[present("a", "1", 7)]).laggards.len(), 1, "b is away and may come back");
        assert!(look(&row, &held, &[present("a", "1", 7), present("b", "2", 9)]).is_clear());
        let skipping = RotationRow { skip_away: true, ..row };
        let skips = look(&skipping, &held, &[present("a", "1", 7)]);
        assert!(skips.is_clear() && skips.skipped.len() == 1, "said openly: {skips:?}");
    }

    #[test]
    fn the_old_root_is_unused_when_nobody_holds_a_valid_leaf_of_it() {
        let row = row(Phase::Proving);
        let leaves = [held("a", "1", "old"), held("a", "2", "new"), held("", "3", "old")];
        let progress = look(&row, &leaves, &[present("a", "1", 9)]);
        assert_eq!((progress.laggards.len(), progress.to_renew.as_slice()), (2, &["a".to_owned()][..]));
        let progress = look(&row, &leaves, &[present("a", "2", 9)]);
        assert_eq!(progress.laggards.len(), 1, "a leaf that nobody said to hold counts until its end");
        assert!(look(&row, &leaves[..2], &[present("a", "2", 9)]).is_clear());
    }

    #[test]
    fn tokens_that_name_the_old_root_and_replicas_that_cannot_issue_are_waited_for() {
        let (proving, issuing) = (row(Phase::Proving), row(Phase::Issuing));
        let open = [OpenTokens { identity: "spiffe://td/ns/shop/sa/web".into(), count: 2, ends: 100 }];
        let facts = Facts { row: &proving, held: &[], present: &[], tokens: &open, without_issuer: &[], now: 40 };
        let waits = progress(&facts);
        assert!(waits.laggards[0].reason.contains("`outrider token revoke shop/web`"), "{waits:?}");
        assert!(!waits.is_clear() && waits.agents == 1);
        let skipping = RotationRow { skip_away: true, ..row(Phase::Proving) };
        let skips = progress(&Facts { row: &skipping, ..facts });
        assert!(skips.is_clear() && skips.skipped == waits.laggards, "{skips:?}");
        let without = ["b".to_owned()];
        let leaves = [held("a", "1", "old")];
        let present = [present("a", "1", 9)];
        let facts = Facts { row: &issuing, held: &leaves, present: &present, tokens: &[], without_issuer: &without, now: 40 };
        let waits = progress(&facts);
        assert_eq!((waits.laggards.len(), waits.others.len(), waits.to_renew.len()), (0, 1, 1));
    }
}
