//! How far this replica is from one mounted CA to the next, so that it goes on there when it starts again. The CA that goes is
//! kept, sealed like our own, for as long as somebody may believe nobody else: its files have been replaced.

use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

use super::{
    Author, Deed, Kek, KeyError, Lease, RotationRow, Store, StoreError,
    audit::enter,
    replica::SILENT,
    rotation::read_phase,
    sql::{composed, sql},
};
use crate::ca::Phase;

/// The CA that goes.
pub(crate) struct GoingRow {
    /// DER: the CA, what it chains to, its root last.
    pub(crate) chain: Vec<Vec<u8>>,
    /// DER.
    pub(crate) key: Zeroizing<Vec<u8>>,
}

/// Seals the key of the CA that goes.
fn seal_name(replica: &str, chain: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, chain);
    format!("ca-key/going/{replica}/{}", crate::ca::hex(digest.as_ref()))
}

impl Store {
    /// How far the last change from one mounted CA to the next is here, and the CA that goes while it does. The revision is not
    /// stored: agents say anew what they have.
    pub(crate) async fn handover(&self, kek: &Kek) -> Result<Option<(RotationRow, Option<GoingRow>)>, StoreError> {
        type Columns = (String, String, String, i64, i64, i64, Option<Vec<u8>>, Option<Vec<u8>>);
        let row: Option<Columns> = sql("SELECT phase, old_root, new_root, started, phase_started, skip_away, chain, sealed_key
             FROM ca_handovers WHERE replica = $1")
        .bind(self.replica())
        .first(self.readers())
        .await?;
        let Some((phase, old_root, new_root, started, phase_started, skip_away, chain, sealed)) = row else { return Ok(None) };
        let phase = read_phase("ca_handovers", &phase)?;
        let (goal, skip_away) = (Phase::Done, skip_away == 1);
        let row = RotationRow { phase, goal, old_root, new_root, started, phase_started, revision: 0, skip_away };
        let (Some(chain), Some(sealed)) = (chain, sealed) else { return Ok(Some((row, None))) };
        // The chain is not sealed: that it is the one of the sealed key is seen by the name.
        let tampered = || KeyError::Tampered { what: "key of the mounted CA that goes".to_owned() };
        let key = kek.open(&seal_name(self.replica(), &chain), &sealed).ok_or_else(tampered)?;
        Ok(Some((row, Some(GoingRow { chain: apart(&chain)?, key }))))
    }

    /// Begins a change to another mounted CA, in the place of the one before.
    pub(crate) async fn begin_handover(
        &self,
        row: &RotationRow,
        going: &GoingRow,
        kek: &Kek,
        now: i64,
    ) -> Result<(), StoreError> {
        let chain = going.chain.concat();
        let sealed = kek.seal(&seal_name(self.replica(), &chain), &going.key)?;
        let mut change = self.begin().await?;
        sql("DELETE FROM ca_handovers WHERE replica = $1").bind(self.replica()).run(&mut change).await?;
        sql("INSERT INTO ca_handovers
             (replica, phase, old_root, new_root, started, phase_started, skip_away, chain, sealed_key)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
        .bind(self.replica())
        .bind(row.phase.as_str())
        .bind(&row.old_root)
        .bind(&row.new_root)
        .bind(row.started)
        .bind(row.phase_started)
        .bind(row.skip_away)
        .bind(chain)
        .bind(sealed)
        .run(&mut change)
        .await?;
        let deed = Deed { author: &self.itself(), call: "MountedCa", subject: row.phase.as_str() };
        enter(&mut change, deed, 0, now).await?;
        Ok(change.commit().await?)
    }

    /// Takes it to the phase of `row`. When that is the last one the CA that goes has gone, and its key is erased.
    pub(crate) async fn advance_handover(&self, row: &RotationRow, now: i64) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        sql("UPDATE ca_handovers SET phase = $1, phase_started = $2, skip_away = $3,
             chain = CASE WHEN $4 = 1 THEN NULL ELSE chain END, sealed_key = CASE WHEN $4 = 1 THEN NULL ELSE sealed_key END
             WHERE replica = $5")
        .bind(row.phase.as_str())
        .bind(row.phase_started)
        .bind(row.skip_away)
        .bind(row.phase.is_over())
        .bind(self.replica())
        .run(&mut change)
        .await?;
        let deed = Deed { author: &self.itself(), call: "MountedCa", subject: row.phase.as_str() };
        enter(&mut change, deed, 0, now).await?;
        Ok(change.commit().await?)
    }

    /// An operator does not wait for those who are not connected.
    pub(crate) async fn skip_away_in_handover(&self, author: &Author, now: i64) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        sql("UPDATE ca_handovers SET skip_away = 1 WHERE replica = $1").bind(self.replica()).run(&mut change).await?;
        let deed = Deed { author, call: "RotateCa", subject: "mounted CA, skipping whoever is away" };
        enter(&mut change, deed, 0, now).await?;
        Ok(change.commit().await?)
    }

    /// The files hold the CA in use again, or one that has nothing to do with this change.
    pub(crate) async fn forget_handover(&self) -> Result<(), StoreError> {
        sql("DELETE FROM ca_handovers WHERE replica = $1").bind(self.replica()).run(&self.writer).await?;
        Ok(())
    }

    /// Forgets what replicas that do not live left behind before `before`: no key stays of one that never comes back.
    pub(crate) async fn prune_handovers(&self, lease: &Lease, before: i64) -> Result<(), StoreError> {
        let mut change = self.begin_under(lease).await?;
        let text = format!(
            "DELETE FROM ca_handovers WHERE phase_started < $1
             AND replica NOT IN (SELECT id FROM replicas WHERE last_seen > {} - $2)",
            self.writer.now()
        );
        composed(text).bind(before).bind(SILENT).run(&mut change).await?;
        Ok(change.commit().await?)
    }
}

/// Certificates one after the other.
fn apart(mut chain: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
    let corrupt = |_| StoreError::Corrupt { table: "ca_handovers", reason: "the chain does not parse".to_owned() };
    let mut ders = Vec::new();
    while !chain.is_empty() {
        let (rest, _) = parse_x509_certificate(chain).map_err(corrupt)?;
        let (der, _) = chain.split_at(chain.len() - rest.len());
        ders.push(der.to_vec());
        chain = rest;
    }
    Ok(ders)
}
