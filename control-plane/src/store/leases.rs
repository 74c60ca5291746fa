//! What must be done by one replica at a time: leases that pass on when their holder is silent, with tokens that keep the
//! writes of a former holder out.
//!
//! A holder that was paused may wake up and believe that it still holds its lease. No clock can prevent that. What it writes
//! is refused all the same: every write of a single task goes through [`Store::begin_under`], which checks in the same
//! transaction that the lease has not passed on.

use std::time::Duration;

use super::{
    Store, StoreError,
    sql::{Change, composed, sql},
};

/// A lease that was taken. It is a right to try: whether it still holds is checked with every write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// What for.
    name: &'static str,
    /// Fencing token: one more at every change of the holder.
    token: i64,
}

#[cfg(test)]
impl Lease {
    /// The fencing token: grows whenever the lease passes to another holder.
    pub(crate) fn token(&self) -> i64 {
        self.token
    }
}

impl Store {
    /// Takes a lease for `ttl`, or prolongs it if this process has it. `None` while another one has it. Call it again well
    /// before `ttl` is over, a third of it is good. The time is the store's: clocks of replicas do not matter.
    ///
    /// # Errors
    /// When the store does not answer; the lease may have been taken then.
    pub(crate) async fn take_lease(&self, name: &'static str, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        let now = self.writer.now();
        let text = format!(
            "INSERT INTO leases (name, holder, token, expires) VALUES ($1, $2, 1, {now} + $3)
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires = excluded.expires,
             token = CASE WHEN leases.holder = excluded.holder THEN leases.token ELSE leases.token + 1 END
             WHERE leases.holder = excluded.holder OR leases.expires <= {now} RETURNING token"
        );
        let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 2);
        let taken: Option<(i64,)> =
            composed(text).bind(name).bind(&self.replica.incarnation).bind(ttl).first(&self.writer).await?;
        Ok(taken.map(|(token,)| Lease { name, token }))
    }

    /// Gives a lease back, so that the next one need not wait for its end.
    ///
    /// # Errors
    /// When the store does not answer: the lease ends by itself then.
    pub(crate) async fn release_lease(&self, lease: Lease) -> Result<(), StoreError> {
        sql("UPDATE leases SET expires = 0 WHERE name = $1 AND holder = $2 AND token = $3")
            .bind(lease.name)
            .bind(&self.replica.incarnation)
            .bind(lease.token)
            .run(&self.writer)
            .await?;
        Ok(())
    }

    /// Begins a change of a single task. While it is open the lease cannot pass on.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when the lease has passed on; nothing is written then.
    pub(super) async fn begin_under(&self, lease: &Lease) -> Result<Change, StoreError> {
        let mut change = self.begin().await?;
        // An update rather than a look: the row is held until the end of the change.
        let held = sql("UPDATE leases SET token = token WHERE name = $1 AND holder = $2 AND token = $3")
            .bind(lease.name)
            .bind(&self.replica.incarnation)
            .bind(lease.token)
            .run(&mut change)
            .await?;
        if held == 0 {
            return Err(StoreError::Fenced(lease.name));
        }
        Ok(change)
    }
}
