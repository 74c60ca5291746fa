//! How far the change of the trust anchor is. Every step is one transaction, and knows the step before.

use super::{
    Author, CaRow, Deed, Kek, Lease, Store, StoreError,
    audit::enter,
    authorities::{Use, insert},
    next_revision, signed,
    sql::{Change, sql},
};
use crate::ca::Phase;

/// The call that begins a rotation, and goes on with it.
const CALL: &str = "RotateCa";

/// The last rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RotationRow {
    pub(crate) phase: Phase,
    /// The phase that it goes on to by itself.
    pub(crate) goal: Phase,
    /// Id of the root that goes.
    pub(crate) old_root: String,
    /// Id of the root that comes.
    pub(crate) new_root: String,
    /// Unix seconds.
    pub(crate) started: i64,
    /// Unix seconds.
    pub(crate) phase_started: i64,
    /// Revision of the trust bundle that agents must acknowledge.
    pub(crate) revision: u64,
    /// Agents that are not connected are not waited for.
    pub(crate) skip_away: bool,
}

/// A leaf that somebody may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldRow {
    pub(crate) serial: String,
    pub(crate) identity: String,
    /// Empty when no agent said that it holds it.
    pub(crate) agent_id: String,
    /// Unix seconds.
    pub(crate) not_after: i64,
    /// Id of the root that it chains to.
    pub(crate) root: String,
}

/// Join tokens for an identity that nobody has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenTokens {
    pub(crate) identity: String,
    pub(crate) count: u64,
    /// Unix seconds: when the last of them ends.
    pub(crate) ends: i64,
}

impl Store {
    /// The last rotation.
    pub(crate) async fn rotation(&self) -> Result<Option<RotationRow>, StoreError> {
        type Columns = (String, String, String, String, i64, i64, i64, i64);
        let row: Option<Columns> = sql("SELECT phase, goal, old_root, new_root, started, phase_started, revision, skip_away
             FROM ca_rotation WHERE id = 1")
        .first(self.readers())
        .await?;
        let Some((phase, goal, old_root, new_root, started, phase_started, revision, skip_away)) = row else { return Ok(None) };
        let read = |text: &str| read_phase("ca_rotation", text);
        Ok(Some(RotationRow {
            phase: read(&phase)?,
            goal: read(&goal)?,
            old_root,
            new_root,
            started,
            phase_started,
            revision: revision.unsigned_abs(),
            skip_away: skip_away == 1,
        }))
    }

    /// Begins a rotation with a new root, which nobody trusts yet. False when one is under way.
    pub(crate) async fn begin_rotation(
        &self,
        root: &CaRow,
        (goal, skip_away): (Phase, bool),
        kek: &Kek,
        author: &Author,
        now: i64,
    ) -> Result<bool, StoreError> {
        let mut change = self.begin().await?;
        // Whoever holds this row is alone.
        let (revision,): (i64,) = sql("UPDATE mesh SET id = id WHERE id = 1 RETURNING revision").one(&mut change).await?;
        let over = format!("'{}', '{}'", Phase::Done.as_str(), Phase::Aborted.as_str());
        let under_way: Option<(i64,)> =
            super::sql::composed(format!("SELECT id FROM ca_rotation WHERE phase NOT IN ({over})")).first(&mut change).await?;
        if under_way.is_some() {
            return Ok(false);
        }
        insert(&mut change, root, ("", &root.id), Use::Waiting, kek, now).await?;
        sql("DELETE FROM ca_rotation").run(&mut change).await?;
        sql("INSERT INTO ca_rotation (id, phase, goal, old_root, new_root, started, phase_started, revision, skip_away)
             SELECT 1, $1, $2, id, $3, $4, $4, $5, $6 FROM ca_keys WHERE role = 'root' AND active = 1")
        .bind(Phase::Prepared.as_str())
        .bind(goal.as_str())
        .bind(&root.id)
        .bind(now)
        .bind(revision)
        .bind(skip_away)
        .run(&mut change)
        .await?;
        let subject = format!("{}, {}", Phase::Prepared.as_str(), aim(goal, skip_away));
        enter(&mut change, Deed { author, call: CALL, subject: &subject }, revision.unsigned_abs(), now).await?;
        change.commit().await?;
        Ok(true)
    }

    /// Says how far the rotation goes by itself.
    pub(crate) async fn aim_rotation(&self, goal: Phase, skip_away: bool, author: &Author, now: i64) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        sql("UPDATE ca_rotation SET goal = $1, skip_away = $2 WHERE id = 1")
            .bind(goal.as_str())
            .bind(skip_away)
            .run(&mut change)
            .await?;
        enter(&mut change, Deed { author, call: CALL, subject: &aim(goal, skip_away) }, 0, now).await?;
        Ok(change.commit().await?)
    }

    /// Takes the rotation on to the next phase, with all that belongs to it. `None` when it is not in that phase any more.
    pub(crate) async fn advance_rotation(&self, lease: &Lease, row: &RotationRow, now: i64) -> Result<Option<u64>, StoreError> {
        let Some(to) = row.phase.next() else { return Ok(None) };
        let mut change = self.begin_under(lease).await?;
        if !moved(&mut change, row, to, now).await? {
            return Ok(None);
        }
        match to {
            Phase::Distributing => {
                sql("UPDATE ca_keys SET trusted = 1 WHERE id = $1 AND role = 'root'")
                    .bind(&row.new_root)
                    .run(&mut change)
                    .await?;
            }
            Phase::Issuing => {
                sql("UPDATE ca_keys SET active = CASE WHEN id = $1 THEN 1 ELSE 0 END WHERE role = 'root'")
                    .bind(&row.new_root)
                    .run(&mut change)
                    .await?;
            }
            Phase::Retiring => forget_root(&mut change, &row.old_root).await?,
            Phase::Prepared | Phase::Proving | Phase::Done | Phase::Aborted => {}
        }
        let revision = if matches!(to, Phase::Proving | Phase::Done) {
            row.revision
        } else {
            let revision = next_revision(&mut change).await?;
            sql("UPDATE ca_rotation SET revision = $1 WHERE id = 1").bind(signed(revision)).run(&mut change).await?;
            revision
        };
        let author = self.itself();
        enter(&mut change, Deed { author: &author, call: CALL, subject: to.as_str() }, revision, now).await?;
        change.commit().await?;
        Ok(Some(revision))
    }

    /// Ends a rotation of which nothing was issued yet: the new root goes. `None` when it is too late.
    pub(crate) async fn abort_rotation(&self, row: &RotationRow, author: &Author, now: i64) -> Result<Option<u64>, StoreError> {
        let mut change = self.begin().await?;
        if !row.phase.can_abort() || !moved(&mut change, row, Phase::Aborted, now).await? {
            return Ok(None);
        }
        forget_root(&mut change, &row.new_root).await?;
        let revision = next_revision(&mut change).await?;
        sql("UPDATE ca_rotation SET revision = $1, goal = $2 WHERE id = 1")
            .bind(signed(revision))
            .bind(Phase::Aborted.as_str())
            .run(&mut change)
            .await?;
        enter(&mut change, Deed { author, call: CALL, subject: Phase::Aborted.as_str() }, revision, now).await?;
        change.commit().await?;
        Ok(Some(revision))
    }

    /// Leaves that are valid and that somebody may hold: all but those whose successor somebody said to hold, and our own.
    pub(crate) async fn held(&self, now: i64) -> Result<Vec<HeldRow>, StoreError> {
        let rows: Vec<(String, String, String, i64, String)> =
            sql("SELECT one.serial, one.identity, one.agent_id, one.not_after, one.root FROM certificates AS one
             LEFT JOIN certificates AS next ON next.serial = one.replaced_by
             WHERE one.not_after > $1 AND one.evidence <> 'self' AND (next.serial IS NULL OR next.agent_id = '')
             ORDER BY one.identity, one.serial")
            .bind(now)
            .all(self.readers())
            .await?;
        let row = |(serial, identity, agent_id, not_after, root)| HeldRow { serial, identity, agent_id, not_after, root };
        Ok(rows.into_iter().map(row).collect())
    }

    /// Join tokens that name this root and are still good, by identity; those that last longest first.
    pub(crate) async fn open_tokens(&self, root: &str, now: i64) -> Result<Vec<OpenTokens>, StoreError> {
        let rows: Vec<(String, i64, i64)> = sql("SELECT identity, count(*), max(expires) FROM tokens
             WHERE used_at IS NULL AND root = $1 AND expires > $2 GROUP BY identity ORDER BY 3 DESC, 1")
        .bind(root)
        .bind(now)
        .all(self.readers())
        .await?;
        let open = |(identity, count, ends): (String, i64, i64)| OpenTokens { identity, count: count.unsigned_abs(), ends };
        Ok(rows.into_iter().map(open).collect())
    }

    /// Replicas, of those that live, without an issuing CA below a root.
    pub(crate) async fn replicas_without(&self, root: &str) -> Result<Vec<String>, StoreError> {
        let with: Vec<(String,)> =
            sql("SELECT DISTINCT replica FROM ca_keys WHERE role = 'issuing' AND root = $1 AND sealed_key IS NOT NULL")
                .bind(root)
                .all(self.readers())
                .await?;
        let live = self.replicas().await?.into_iter().filter(|replica| replica.is_live()).map(|replica| replica.id);
        let live = live.chain([self.replica().to_owned()]);
        let mut without: Vec<String> = live.filter(|id| !with.iter().any(|(has,)| has == id)).collect();
        without.sort();
        without.dedup();
        Ok(without)
    }
}

pub(super) fn read_phase(table: &'static str, text: &str) -> Result<Phase, StoreError> {
    Phase::read(text).ok_or_else(|| StoreError::Corrupt { table, reason: format!("`{text}` is not a phase") })
}

/// How far a rotation shall go.
fn aim(goal: Phase, skip_away: bool) -> String {
    let goal = goal.as_str();
    if skip_away { format!("to {goal}, skipping whoever is away") } else { format!("to {goal}") }
}

/// Moves from the phase of `row` to another. False when that is not its phase any more.
async fn moved(change: &mut Change, row: &RotationRow, to: Phase, now: i64) -> Result<bool, StoreError> {
    let moved = sql("UPDATE ca_rotation SET phase = $1, phase_started = $2 WHERE id = 1 AND phase = $3 AND new_root = $4")
        .bind(to.as_str())
        .bind(now)
        .bind(row.phase.as_str())
        .bind(&row.new_root)
        .run(change)
        .await?;
    Ok(moved == 1)
}

/// A root is trusted no more, and signs nothing: its keys are erased, and those below it.
async fn forget_root(change: &mut Change, id: &str) -> Result<(), StoreError> {
    sql("UPDATE ca_keys SET trusted = 0, active = 0, sealed_key = NULL WHERE root = $1").bind(id).run(change).await?;
    Ok(())
}
