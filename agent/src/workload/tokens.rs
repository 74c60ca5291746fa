//! Tokens for the own program: asked of the control plane, kept to half of their life, and served to their end when nobody answers.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outrider_proto::v1::{IssueJwtRequest, IssueJwtResponse, identity_client::IdentityClient};
use tokio::sync::Semaphore;

use crate::config::{ControlPlane, ControlPlaneError};

/// Sets of audiences that tokens are kept for.
const KEPT: usize = 128;
/// Time for the control plane to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// A token with less than this left helps nobody.
const LEAST: Duration = Duration::from_secs(2);

/// No token can be had.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// No control plane.
    #[error(transparent)]
    ControlPlane(#[from] ControlPlaneError),
    /// The control plane says no.
    #[error("the control plane refused: {0}")]
    Refused(String),
    /// No answer in time.
    #[error("the control plane did not answer in time")]
    Silence,
}

/// A token, and until when it is worth what.
#[derive(Clone, Debug)]
struct Kept {
    token: String,
    identity: String,
    /// From here on a new one is asked for.
    half: SystemTime,
    end: SystemTime,
}

/// Where tokens come from.
#[derive(Debug)]
pub struct Tokens {
    control_plane: ControlPlane,
    kept: Mutex<HashMap<BTreeSet<String>, Kept>>,
    /// One question at a time: programs that ask for the same get the same answer.
    turn: Semaphore,
}

impl Tokens {
    /// Tokens of this control plane.
    pub fn new(control_plane: ControlPlane) -> Self {
        Self { control_plane, kept: Mutex::default(), turn: Semaphore::new(1) }
    }

    /// A token of `identity` for these audiences.
    ///
    /// # Errors
    /// When there is none at hand and none can be had.
    pub async fn get(&self, identity: &str, audience: &BTreeSet<String>) -> Result<String, TokensError> {
        if let Some(kept) = self.find(identity, audience).filter(|kept| SystemTime::now() < kept.half) {
            return Ok(kept.token);
        }
        let _turn = self.turn.acquire().await.map_err(|_| TokensError::Silence)?;
        let before = self.find(identity, audience);
        if let Some(kept) = before.clone().filter(|kept| SystemTime::now() < kept.half) {
            return Ok(kept.token);
        }
        match self.ask(audience).await {
            Ok(fresh) => {
                self.keep(audience.clone(), fresh.clone());
                Ok(fresh.token)
            }
            Err(error) => match before.filter(|kept| SystemTime::now() + LEAST < kept.end) {
                Some(kept) => {
                    tracing::warn!(%error, "no new token: the one before is used to its end");
                    Ok(kept.token)
                }
                None => Err(error),
            },
        }
    }

    fn find(&self, identity: &str, audience: &BTreeSet<String>) -> Option<Kept> {
        // Nothing in here can panic half-way.
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(audience).filter(|kept| kept.identity == identity).cloned()
    }

    fn keep(&self, audience: BTreeSet<String>, fresh: Kept) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        kept.retain(|_, token| now < token.end);
        if kept.len() >= KEPT
            && let Some(oldest) = kept.iter().min_by_key(|(_, token)| token.end).map(|(audience, _)| audience.clone())
        {
            kept.remove(&oldest);
        }
        kept.insert(audience, fresh);
    }

    async fn ask(&self, audience: &BTreeSet<String>) -> Result<Kept, TokensError> {
        let call = async {
            let mut client = IdentityClient::new(self.control_plane.connect().await?);
            let request = IssueJwtRequest { audience: audience.iter().cloned().collect() };
            let answer = client.issue_jwt(request).await;
            answer.map_err(|status| TokensError::Refused(format!("{} ({:?})", status.message(), status.code())))
        };
        let answer = tokio::time::timeout(ANSWER, call).await.map_err(|_| TokensError::Silence)??;
        Ok(Kept::new(answer.into_inner(), SystemTime::now()))
    }
}

impl Kept {
    fn new(answer: IssueJwtResponse, now: SystemTime) -> Self {
        let end = UNIX_EPOCH + Duration::from_secs(u64::try_from(answer.expires_at).unwrap_or_default());
        let half = now + end.duration_since(now).unwrap_or_default() / 2;
        Self { token: answer.token, identity: answer.identity, half, end }
    }
}
