//! Putting leaves on record, many in one transaction: the disk is asked once for all that wait.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::{mpsc, oneshot};

use super::{
    CertificateRow, Redeem, Store, StoreError, TokenHash,
    sql::{Change, Pool, composed, rows, sql},
};

/// Most issuances of one transaction.
const TOGETHER: usize = 128;
/// What proves our own identity.
const OWN: &str = "self";
/// Issuances that may wait.
const QUEUE: usize = 4096;

/// An issuance that waits for its turn.
#[derive(Debug)]
pub(super) struct Pending {
    row: CertificateRow,
    redeem: Redeem,
    now: i64,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

impl Store {
    /// Records a leaf and uses up its evidence in one transaction. Only then may the leaf leave the house.
    pub(crate) async fn issued(&self, row: &CertificateRow, redeem: &Redeem, now: i64) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let pending = Pending { row: row.clone(), redeem: redeem.clone(), now, reply };
        self.issuances.send(pending).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

/// Starts to take issuances; ends when nobody can ask any more.
pub(super) fn start(pool: Pool) -> mpsc::Sender<Pending> {
    let (send, receive) = mpsc::channel(QUEUE);
    #[expect(clippy::disallowed_methods, reason = "it ends with its store, and those who wait hear when it does not answer")]
    drop(tokio::spawn(run(pool, receive)));
    send
}

async fn run(pool: Pool, mut receive: mpsc::Receiver<Pending>) {
    let mut batch = Vec::with_capacity(TOGETHER);
    while receive.recv_many(&mut batch, TOGETHER).await > 0 {
        settle(&pool, std::mem::take(&mut batch)).await;
    }
}

/// Answers all of a batch, each only after its commit.
async fn settle(pool: &Pool, batch: Vec<Pending>) {
    let outcome = record(pool, &batch).await;
    match outcome {
        Ok(late) => {
            for (index, pending) in batch.into_iter().enumerate() {
                drop(pending.reply.send(late.get(&index).map_or(Ok(()), |late| Err(late.error()))));
            }
        }
        // One that the database does not take must not fail the others.
        Err(StoreError::Database(sqlx::Error::Database(_))) if batch.len() > 1 => {
            for pending in batch {
                Box::pin(settle(pool, vec![pending])).await;
            }
        }
        Err(error) => {
            let error = std::sync::Arc::new(error);
            for pending in batch {
                drop(pending.reply.send(Err(StoreError::Shared(std::sync::Arc::clone(&error)))));
            }
        }
    }
}

/// For what an issuance came too late.
#[derive(Clone, Copy, Debug)]
enum Late {
    /// Somebody else had its token first.
    Token,
    /// The root that it was signed below signs no more.
    Root,
}

impl Late {
    fn error(self) -> StoreError {
        match self {
            Self::Token => StoreError::TokenUsed,
            Self::Root => StoreError::RootRetired,
        }
    }
}

/// Writes a batch; says which of it came too late.
async fn record(pool: &Pool, batch: &[Pending]) -> Result<BTreeMap<usize, Late>, StoreError> {
    let mut change = pool.begin().await?;
    let mut late = fence(&mut change, batch).await?;
    redeem(&mut change, batch, &mut late).await?;
    let good: Vec<&Pending> =
        batch.iter().enumerate().filter(|(index, _)| !late.contains_key(index)).map(|(_, one)| one).collect();
    if !good.is_empty() {
        replace(&mut change, &good).await?;
        insert(&mut change, &good).await?;
        change.commit().await?;
    }
    Ok(late)
}

/// Only the root that signs now may have signed a leaf, and only one that is trusted a leaf of our own: a replica that stood still
/// while the trust anchor was changed does not know that its root is gone. The rows of the roots are held until the end, so that
/// none is retired between this look and the commit. Roots that somebody else makes are not in the store.
async fn fence(change: &mut Change, batch: &[Pending]) -> Result<BTreeMap<usize, Late>, StoreError> {
    let roots: BTreeSet<&str> = batch.iter().map(|pending| pending.row.root.as_str()).collect();
    let places: Vec<String> = (1..=roots.len()).map(|place| format!("${place}")).collect();
    // The only writer of an SQLite file needs no more than to be in its change.
    let hold = if change.is_shared() { " FOR SHARE" } else { "" };
    let text = format!("SELECT id, trusted, active FROM ca_keys WHERE role = 'root' AND id IN ({}){hold}", places.join(", "));
    let known: Vec<(String, i64, i64)> = roots.iter().fold(composed(text), |query, root| query.bind(*root)).all(change).await?;
    let is_late = |row: &CertificateRow| {
        let root = known.iter().find(|(id, ..)| *id == row.root);
        root.is_some_and(|(_, trusted, active)| if row.evidence == OWN { *trusted != 1 } else { *active != 1 })
    };
    let late = batch.iter().enumerate().filter(|(_, pending)| is_late(&pending.row));
    Ok(late.map(|(index, _)| (index, Late::Root)).collect())
}

/// Uses tokens up and grants their identities the services. Whoever's token somebody else had first is late.
async fn redeem(change: &mut Change, batch: &[Pending], late: &mut BTreeMap<usize, Late>) -> Result<(), StoreError> {
    // Two requests may hold the same valid token: the row decides which was first, and within a batch the place in it.
    let mut first: BTreeMap<TokenHash, usize> = BTreeMap::new();
    for (index, pending) in batch.iter().enumerate() {
        if let Redeem::Token(hash) = &pending.redeem
            && !late.contains_key(&index)
            && *first.entry(*hash).or_insert(index) != index
        {
            late.insert(index, Late::Token);
        }
    }
    if first.is_empty() {
        return Ok(());
    }
    let now = batch.iter().map(|pending| pending.now).max().unwrap_or(0);
    let places: Vec<String> = (2..first.len() + 2).map(|place| format!("${place}")).collect();
    let text = format!(
        "UPDATE tokens SET used_at = $1 WHERE used_at IS NULL AND hash IN ({}) RETURNING hash, identity, services",
        places.join(", ")
    );
    let query = first.keys().fold(composed(text).bind(now), |query, hash| query.bind(hash.as_slice()));
    let redeemed: Vec<(Vec<u8>, String, String)> = query.all(&mut *change).await?;
    let fresh: BTreeSet<&[u8]> = redeemed.iter().map(|(hash, ..)| hash.as_slice()).collect();
    let stale = first.iter().filter(|(hash, _)| !fresh.contains(hash.as_slice()));
    late.extend(stale.map(|(_, index)| (*index, Late::Token)));
    for (_, identity, services) in &redeemed {
        let corrupt = |error: serde_json::Error| StoreError::Corrupt { table: "tokens", reason: error.to_string() };
        let services: Vec<String> = serde_json::from_str(services).map_err(corrupt)?;
        for service in services {
            let grant = sql("INSERT INTO grants (identity, service) VALUES ($1, $2) ON CONFLICT DO NOTHING");
            grant.bind(identity).bind(service).run(&mut *change).await?;
        }
    }
    Ok(())
}

/// Notes which certificates were renewed into which.
async fn replace(change: &mut Change, good: &[&Pending]) -> Result<(), StoreError> {
    let renewed: BTreeMap<&str, &str> = good
        .iter()
        .filter_map(|pending| match &pending.redeem {
            Redeem::Certificate(serial) => Some((serial.as_str(), pending.row.serial.as_str())),
            Redeem::Token(_) | Redeem::Nothing => None,
        })
        .collect();
    if renewed.is_empty() {
        return Ok(());
    }
    let text = format!(
        "WITH renewed (old, new) AS (VALUES {}) UPDATE certificates SET replaced_by = renewed.new FROM renewed
         WHERE certificates.serial = renewed.old",
        rows(1, renewed.len(), 2)
    );
    // A successor that nobody said to hold did not arrive: the one who renews again has none but the new one then.
    let lost = format!(
        "WITH renewed (old, new) AS (VALUES {}) UPDATE certificates SET replaced_by = renewed.new FROM renewed, certificates AS before
         WHERE before.serial = renewed.old AND certificates.serial = before.replaced_by AND certificates.agent_id = ''",
        rows(1, renewed.len(), 2)
    );
    for text in [lost, text] {
        let query = renewed.iter().fold(composed(text), |query, (old, new)| query.bind(*old).bind(*new));
        query.run(&mut *change).await?;
    }
    Ok(())
}

async fn insert(change: &mut Change, good: &[&Pending]) -> Result<(), StoreError> {
    let text = format!(
        "INSERT INTO certificates (serial, identity, not_before, not_after, evidence, issuer, agent_id, replica, root)
         VALUES {}",
        rows(1, good.len(), 9)
    );
    let query = good.iter().map(|pending| &pending.row).fold(composed(text), |query, row| {
        let query = query.bind(&row.serial).bind(&row.identity).bind(row.not_before).bind(row.not_after);
        query.bind(&row.evidence).bind(&row.issuer).bind(&row.agent_id).bind(&row.replica).bind(&row.root)
    });
    query.run(change).await?;
    Ok(())
}
