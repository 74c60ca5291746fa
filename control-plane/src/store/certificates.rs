//! Every leaf that was issued: to whom, on which evidence, until when.

use super::{Store, StoreError, TokenHash, tokens::redeem as redeem_token};

/// An issued leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateRow {
    /// Lower-case hex.
    pub(crate) serial: String,
    pub(crate) identity: String,
    /// Unix seconds.
    pub(crate) not_before: i64,
    /// Unix seconds.
    pub(crate) not_after: i64,
    /// What proved the identity.
    pub(crate) evidence: String,
    /// Common name of the CA that signed it.
    pub(crate) issuer: String,
    /// Agent that said that it holds it; empty until one did.
    pub(crate) agent_id: String,
    /// Serial of the one that came into its place.
    pub(crate) replaced_by: Option<String>,
}

/// What an issuance uses up.
#[derive(Clone, Debug)]
pub(crate) enum Redeem {
    /// A join token.
    Token(TokenHash),
    /// The certificate of this serial is replaced.
    Certificate(String),
    /// Nothing: the control plane's own.
    Nothing,
}

type Columns = (String, String, i64, i64, String, String, String, Option<String>);

impl Store {
    /// Records a leaf and uses up its evidence in one transaction. Only then may the leaf leave the house.
    pub(crate) async fn issued(&self, row: &CertificateRow, redeem: &Redeem, now: i64) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        match redeem {
            Redeem::Token(hash) => {
                if !redeem_token(&mut change, hash, now).await? {
                    return Err(StoreError::TokenUsed);
                }
            }
            Redeem::Certificate(serial) => {
                sqlx::query("UPDATE certificates SET replaced_by = ? WHERE serial = ?")
                    .bind(&row.serial)
                    .bind(serial)
                    .execute(&mut *change)
                    .await?;
            }
            Redeem::Nothing => {}
        }
        sqlx::query(
            "INSERT INTO certificates (serial, identity, not_before, not_after, evidence, issuer, agent_id)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&row.serial)
        .bind(&row.identity)
        .bind(row.not_before)
        .bind(row.not_after)
        .bind(&row.evidence)
        .bind(&row.issuer)
        .bind(&row.agent_id)
        .execute(&mut *change)
        .await?;
        Ok(change.commit().await?)
    }

    /// The leaf of that serial.
    pub(crate) async fn certificate(&self, serial: &str) -> Result<Option<CertificateRow>, StoreError> {
        let row: Option<Columns> = sqlx::query_as(
            "SELECT serial, identity, not_before, not_after, evidence, issuer, agent_id, replaced_by FROM certificates WHERE serial = ?",
        )
        .bind(serial)
        .fetch_optional(self.readers())
        .await?;
        Ok(row.map(certificate))
    }

    /// Leaves that have not expired, newest first; without `all` only those that were not replaced.
    pub(crate) async fn certificates(&self, all: bool, now: i64, limit: u32) -> Result<Vec<CertificateRow>, StoreError> {
        let rows: Vec<Columns> = sqlx::query_as(
            "SELECT serial, identity, not_before, not_after, evidence, issuer, agent_id, replaced_by FROM certificates
             WHERE not_after > ? AND (? OR replaced_by IS NULL) ORDER BY not_before DESC, serial LIMIT ?",
        )
        .bind(now)
        .bind(all)
        .bind(limit)
        .fetch_all(self.readers())
        .await?;
        Ok(rows.into_iter().map(certificate).collect())
    }

    /// Notes which agent holds a leaf.
    pub(crate) async fn holds(&self, serial: &str, identity: &str, agent_id: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE certificates SET agent_id = ? WHERE serial = ? AND identity = ? AND agent_id <> ?")
            .bind(agent_id)
            .bind(serial)
            .bind(identity)
            .bind(agent_id)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Forgets leaves that ended before `before`.
    pub(crate) async fn prune_certificates(&self, before: i64) -> Result<u64, StoreError> {
        let pruned = sqlx::query("DELETE FROM certificates WHERE not_after < ?").bind(before).execute(&self.writer).await?;
        Ok(pruned.rows_affected())
    }
}

fn certificate(row: Columns) -> CertificateRow {
    let (serial, identity, not_before, not_after, evidence, issuer, agent_id, replaced_by) = row;
    CertificateRow { serial, identity, not_before, not_after, evidence, issuer, agent_id, replaced_by }
}
