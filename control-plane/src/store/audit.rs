//! The log of what operators changed or tried to, and of what the control plane changed by itself. The entry of a change is part
//! of it: neither is there without the other.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    Store, StoreError, signed,
    sql::{Change, sql},
};

/// Entries of the log that are kept.
const AUDIT_KEPT: i64 = 100_000;
/// Longest subject in the log, in characters.
const MAX_SUBJECT: usize = 500;

/// Whoever asks for a change. Clones are of the same call.
#[derive(Clone, Debug)]
pub(crate) struct Author {
    pub(crate) who: String,
    /// The role in which it is asked for; empty of the control plane itself.
    pub(crate) role: &'static str,
    pub(crate) origin: String,
    entered: Arc<AtomicBool>,
}

impl Author {
    /// Who calls, as what, from where.
    pub(crate) fn new(who: String, role: &'static str, origin: String) -> Self {
        Self { who, role, origin, entered: Arc::default() }
    }

    /// The control plane, which goes on with what somebody began.
    fn itself(replica: &str) -> Self {
        Self::new("control plane".to_owned(), "", format!("replica {replica}"))
    }

    /// Whether a change of this call is stored, and its entry with it.
    pub(crate) fn has_entered(&self) -> bool {
        self.entered.load(Ordering::Acquire)
    }

    /// The change is stored.
    pub(super) fn mark_entered(&self) {
        self.entered.store(true, Ordering::Release);
    }

    /// Somebody on the socket.
    #[cfg(test)]
    pub(crate) fn local() -> Self {
        Self::new("uid 0".to_owned(), "admin", "unix socket".to_owned())
    }
}

/// What somebody does, for its entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deed<'a> {
    pub(crate) author: &'a Author,
    pub(crate) call: &'a str,
    pub(crate) subject: &'a str,
}

/// A call that changes something, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AuditRow {
    pub(crate) number: u64,
    /// Unix seconds.
    pub(crate) time: i64,
    pub(crate) who: String,
    pub(crate) role: String,
    pub(crate) call: String,
    pub(crate) subject: String,
    pub(crate) revision: u64,
    pub(crate) outcome: String,
    pub(crate) origin: String,
}

type AuditColumns = (i64, i64, String, String, String, String, i64, String, String);

impl Store {
    /// The control plane as an author.
    pub(crate) fn itself(&self) -> Author {
        Author::itself(self.replica())
    }

    /// Puts a call on record that changed nothing in the store.
    pub(crate) async fn log_call(&self, deed: Deed<'_>, outcome: &str, now: i64) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        insert(&mut change, deed, (0, outcome), now).await?;
        Ok(change.commit().await?)
    }

    /// Calls on record since then, newest first.
    pub(crate) async fn audit_log(&self, since: i64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        let rows: Vec<AuditColumns> = sql("SELECT seq, time, who, role, call, subject, revision, outcome, origin
             FROM audit_log WHERE time >= $1 ORDER BY seq DESC LIMIT $2")
        .bind(since)
        .bind(limit)
        .all(self.readers())
        .await?;
        let read = |(number, time, who, role, call, subject, revision, outcome, origin): AuditColumns| AuditRow {
            number: number.unsigned_abs(),
            time,
            who,
            role,
            call,
            subject,
            revision: revision.unsigned_abs(),
            outcome,
            origin,
        };
        Ok(rows.into_iter().map(read).collect())
    }
}

/// Puts a change on record as part of it; 0 is no revision.
pub(super) async fn enter(change: &mut Change, deed: Deed<'_>, revision: u64, now: i64) -> Result<(), StoreError> {
    insert(change, deed, (revision, "ok"), now).await?;
    change.is_entered_by(deed.author);
    Ok(())
}

/// The oldest entries give way.
async fn insert(change: &mut Change, deed: Deed<'_>, (revision, outcome): (u64, &str), now: i64) -> Result<(), StoreError> {
    let Deed { author, call, subject } = deed;
    let subject: String = subject.chars().take(MAX_SUBJECT).collect();
    sql("INSERT INTO audit_log (time, who, role, call, subject, revision, outcome, origin)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
    .bind(now)
    .bind(&author.who)
    .bind(author.role)
    .bind(call)
    .bind(subject)
    .bind(signed(revision))
    .bind(outcome)
    .bind(&author.origin)
    .run(&mut *change)
    .await?;
    sql("DELETE FROM audit_log WHERE seq <= (SELECT max(seq) FROM audit_log) - $1").bind(AUDIT_KEPT).run(change).await?;
    Ok(())
}
