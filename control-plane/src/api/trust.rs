//! `Admin`, as far as it is about who is believed.

use outrider_policy::SpiffeId;
use outrider_proto::v1;
use tonic::Status;

use super::{admin::Operators, unavailable};
use crate::{
    clock,
    compile::identity,
    registry::{ChangeError, Request as Change, TrustChange, nearest},
    store::{Author, RevocationRow},
};

/// Most characters of a reason.
const MAX_REASON: usize = 200;
/// Certificates among which a mistyped serial is looked for.
const LOOKED_AT: u32 = 10_000;

impl Operators {
    pub(super) async fn revoked(&self, request: v1::RevokeRequest, author: Author) -> Result<v1::RevokeResponse, Status> {
        let v1::RevokeRequest { subject, reason } = request;
        let reason: String = reason.chars().filter(|c| !c.is_control()).collect();
        if reason.trim().is_empty() || reason.chars().count() > MAX_REASON {
            return Err(Status::invalid_argument(format!("say why, in at most {MAX_REASON} characters")));
        }
        let row = self.revocation(&subject, reason).await?;
        let identity = row.identity.clone();
        let subject = row.subject.clone();
        let revision = self.mesh.ask(|reply| Change::Trust(TrustChange::Revoke { row, author, reply })).await;
        let revision = revision.map_err(|error| refused(&error))?;
        Ok(v1::RevokeResponse { revision, subject, identity })
    }

    async fn revocation(&self, subject: &str, reason: String) -> Result<RevocationRow, Status> {
        let now = clock::now();
        let row = match self.subject(subject)? {
            Subject::Identity(identity) => {
                let identity = identity.to_string();
                RevocationRow { subject: identity.clone(), identity, reason, created: now, ends: None }
            }
            Subject::Serial(serial) => {
                let known = self.store.certificate(&serial).await.map_err(|error| unavailable("certificate", &error))?;
                let Some(row) = known.filter(|row| row.not_after > now) else { return Err(self.no_such(&serial).await) };
                RevocationRow { subject: serial, identity: row.identity, reason, created: now, ends: Some(row.not_after) }
            }
        };
        if row.identity == self.own.as_str() {
            return Err(Status::invalid_argument("the control plane itself cannot be revoked: rotate the CA instead"));
        }
        Ok(row)
    }

    async fn no_such(&self, serial: &str) -> Status {
        let all = self.store.certificates(true, clock::now(), LOOKED_AT).await.unwrap_or_default();
        let near = nearest(serial, all.iter().map(|row| row.serial.as_str()));
        let hint = near.map_or_else(String::new, |near| format!(": did you mean `{near}`?"));
        Status::not_found(format!("no certificate of serial `{serial}` is valid{hint}"))
    }

    pub(super) async fn unrevoked(&self, request: v1::UnrevokeRequest, author: Author) -> Result<v1::RevokeResponse, Status> {
        let (subject, identity) = match self.subject(&request.subject)? {
            Subject::Serial(serial) => (serial, String::new()),
            Subject::Identity(identity) => (identity.to_string(), identity.to_string()),
        };
        let undone = subject.clone();
        let revision = self.mesh.ask(|reply| Change::Trust(TrustChange::Unrevoke { subject: undone, author, reply })).await;
        Ok(v1::RevokeResponse { revision: revision.map_err(|error| refused(&error))?, subject, identity })
    }

    pub(super) fn revocations(&self) -> v1::ListRevocationsResponse {
        let world = self.mesh.world.borrow();
        let status = |row: &RevocationRow| v1::RevocationStatus {
            subject: row.subject.clone(),
            identity: row.identity.clone(),
            reason: row.reason.clone(),
            revoked: row.created,
            ends: row.ends.unwrap_or_default(),
        };
        v1::ListRevocationsResponse { revocations: world.revocations.rows.iter().map(status).collect() }
    }

    /// A serial is hexadecimal and has no slash.
    fn subject(&self, text: &str) -> Result<Subject, Status> {
        if (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Subject::Serial(text.to_ascii_lowercase()));
        }
        let identity = identity(text, self.trust_domain()).map_err(Status::invalid_argument)?;
        identity.map(Subject::Identity).ok_or_else(|| Status::invalid_argument("name a serial number or an identity"))
    }
}

enum Subject {
    Serial(String),
    Identity(SpiffeId),
}

fn refused(error: &ChangeError) -> Status {
    match error {
        ChangeError::NotFound(_) => Status::not_found(error.to_string()),
        ChangeError::TooManyRevocations(_) => Status::resource_exhausted(error.to_string()),
        ChangeError::Store(error) => unavailable("revocation", error),
        _ => Status::unavailable(error.to_string()),
    }
}
