//! Operators, of whose login tokens only hashes are stored.

use super::{Author, Deed, Store, StoreError, TokenHash, audit::enter, sql::sql};

/// An operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OperatorRow {
    pub(crate) name: String,
    pub(crate) role: String,
    /// Unix seconds.
    pub(crate) created: i64,
    /// Unix seconds; 0 when no token is open.
    pub(crate) login_expires: i64,
}

impl Store {
    /// Makes an operator or changes one, with a new login token in the place of an older one.
    pub(crate) async fn put_operator(&self, row: &OperatorRow, hash: &TokenHash, author: &Author) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        sql("INSERT INTO operators (name, role, created, login_hash, login_expires) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (name) DO UPDATE SET role = excluded.role, login_hash = excluded.login_hash,
             login_expires = excluded.login_expires")
        .bind(&row.name)
        .bind(&row.role)
        .bind(row.created)
        .bind(hash.as_slice())
        .bind(row.login_expires)
        .run(&mut change)
        .await?;
        let subject = format!("{} as {}", row.name, row.role);
        enter(&mut change, Deed { author, call: "CreateOperator", subject: &subject }, 0, row.created).await?;
        Ok(change.commit().await?)
    }

    /// Uses a login token up; the name of its operator, or `None` when there is no such token that is good at `now`.
    pub(crate) async fn redeem_login(&self, hash: &TokenHash, now: i64) -> Result<Option<(String, String)>, StoreError> {
        let mut change = self.begin().await?;
        let row: Option<(String, String)> = sql("UPDATE operators SET login_hash = NULL, login_expires = 0
             WHERE login_hash = $1 AND login_expires > $2 RETURNING name, role")
        .bind(hash.as_slice())
        .bind(now)
        .first(&mut change)
        .await?;
        change.commit().await?;
        Ok(row)
    }

    /// Removes an operator. False when there is none.
    pub(crate) async fn remove_operator(&self, name: &str, author: &Author, now: i64) -> Result<bool, StoreError> {
        let mut change = self.begin().await?;
        let gone: Option<(String,)> =
            sql("DELETE FROM operators WHERE name = $1 RETURNING name").bind(name).first(&mut change).await?;
        if gone.is_some() {
            enter(&mut change, Deed { author, call: "RemoveOperator", subject: name }, 0, now).await?;
            change.commit().await?;
        }
        Ok(gone.is_some())
    }

    /// All operators.
    pub(crate) async fn operators(&self) -> Result<Vec<OperatorRow>, StoreError> {
        let rows: Vec<(String, String, i64, i64)> =
            sql("SELECT name, role, created, login_expires FROM operators ORDER BY name").all(self.readers()).await?;
        let read = |(name, role, created, login_expires)| OperatorRow { name, role, created, login_expires };
        Ok(rows.into_iter().map(read).collect())
    }

    /// The role of an operator, as it is now.
    pub(crate) async fn operator_role(&self, name: &str) -> Result<Option<String>, StoreError> {
        // From the writer: a reader may be a moment behind, and a removal must count at once.
        let row: Option<(String,)> = sql("SELECT role FROM operators WHERE name = $1").bind(name).first(&self.writer).await?;
        Ok(row.map(|(role,)| role))
    }
}
