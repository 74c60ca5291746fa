//! Every leaf that was issued: to whom, on which evidence, until when.

use super::{Lease, Store, StoreError, TokenHash, sql::sql};

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
    /// Replica that issued it.
    pub(crate) replica: String,
    /// Id of the root that it chains to.
    pub(crate) root: String,
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

type Columns = (String, String, i64, i64, String, String, String, Option<String>, String, String);

impl Store {
    /// The leaf of that serial.
    pub(crate) async fn certificate(&self, serial: &str) -> Result<Option<CertificateRow>, StoreError> {
        let row: Option<Columns> = sql(concat!(
            "SELECT serial, identity, not_before, not_after, evidence, issuer, agent_id, replaced_by, replica, root ",
            "FROM certificates WHERE serial = $1"
        ))
        .bind(serial)
        .first(self.readers())
        .await?;
        Ok(row.map(certificate))
    }

    /// Leaves that have not expired, newest first; without `all` only those that were not replaced.
    pub(crate) async fn certificates(&self, all: bool, now: i64, limit: u32) -> Result<Vec<CertificateRow>, StoreError> {
        let rows: Vec<Columns> = sql(
            "SELECT serial, identity, not_before, not_after, evidence, issuer, agent_id, replaced_by, replica, root FROM certificates
             WHERE not_after > $1 AND ($2 = 1 OR replaced_by IS NULL) ORDER BY not_before DESC, serial LIMIT $3",
        )
        .bind(now)
        .bind(all)
        .bind(limit)
        .all(self.readers())
        .await?;
        Ok(rows.into_iter().map(certificate).collect())
    }

    /// Notes which agent holds a leaf.
    pub(crate) async fn holds(&self, serial: &str, identity: &str, agent_id: &str) -> Result<(), StoreError> {
        sql("UPDATE certificates SET agent_id = $1 WHERE serial = $2 AND identity = $3 AND agent_id <> $1")
            .bind(agent_id)
            .bind(serial)
            .bind(identity)
            .run(&self.writer)
            .await?;
        Ok(())
    }

    /// Forgets leaves that ended before `before`.
    pub(crate) async fn prune_certificates(&self, lease: &Lease, before: i64) -> Result<u64, StoreError> {
        let mut change = self.begin_under(lease).await?;
        let pruned = sql("DELETE FROM certificates WHERE not_after < $1").bind(before).run(&mut change).await?;
        change.commit().await?;
        Ok(pruned)
    }
}

fn certificate(row: Columns) -> CertificateRow {
    let (serial, identity, not_before, not_after, evidence, issuer, agent_id, replaced_by, replica, root) = row;
    CertificateRow { serial, identity, not_before, not_after, evidence, issuer, agent_id, replaced_by, replica, root }
}
