//! The calls about operators, and about who changed what.

use outrider_proto::v1;
use tonic::Status;

use super::{Operators, unavailable};
use crate::{
    clock,
    operators::{Note, OperatorName, Role},
    store::{AuditRow, Author, OperatorRow},
};

fn name(text: &str) -> Result<OperatorName, Status> {
    text.parse().map_err(|error: String| Status::invalid_argument(format!("operator: {error}")))
}

impl Operators {
    /// Makes an operator, or changes one.
    pub(super) async fn invited(
        &self,
        request: v1::CreateOperatorRequest,
        (author, note): (&Author, &Note),
    ) -> Result<v1::CreateOperatorResponse, Status> {
        let v1::CreateOperatorRequest { name: text, role, ttl_seconds } = request;
        note.subject(format!("{text} as {role}"));
        let (name, unknown) = (name(&text)?, || Status::invalid_argument("a role is `viewer`, `editor` or `admin`"));
        let role: Role = role.parse().map_err(|()| unknown())?;
        let ttl = match ttl_seconds {
            0 => 600,
            ttl @ 60..=86_400 => i64::from(ttl),
            ttl => return Err(Status::invalid_argument(format!("a token lives 60 to 86400 seconds, not {ttl}"))),
        };
        let (token, expires) = self.logins.invite(&name, role, ttl, author).await?;
        let identity = name.identity(self.trust_domain()).map(|identity| identity.to_string()).unwrap_or_default();
        Ok(v1::CreateOperatorResponse { token, expires, identity, control_plane: self.door.clone() })
    }

    /// Takes an operator's rights.
    pub(super) async fn removed(
        &self,
        text: &str,
        (author, note): (&Author, &Note),
    ) -> Result<v1::RemoveOperatorResponse, Status> {
        note.subject(text);
        if self.logins.remove(&name(text)?, author).await? {
            Ok(v1::RemoveOperatorResponse {})
        } else {
            Err(Status::not_found(format!("no operator `{text}`")))
        }
    }

    /// All operators.
    pub(super) async fn listed_operators(&self) -> Result<v1::ListOperatorsResponse, Status> {
        let rows = self.store.operators().await.map_err(|error| unavailable("operators", &error))?;
        let status = |row: OperatorRow| {
            let identity = row.name.parse::<OperatorName>().ok().and_then(|name| name.identity(self.trust_domain()));
            let identity = identity.map(|identity| identity.to_string()).unwrap_or_default();
            let OperatorRow { name, role, created, login_expires } = row;
            v1::OperatorStatus { name, role, identity, created, login_expires }
        };
        Ok(v1::ListOperatorsResponse { operators: rows.into_iter().map(status).collect() })
    }

    /// The log of calls.
    pub(super) async fn audit_log(&self, request: v1::ListAuditRequest) -> Result<v1::ListAuditResponse, Status> {
        let since = match request.since_seconds {
            0 => 0,
            seconds => clock::now().saturating_sub(i64::try_from(seconds).unwrap_or(i64::MAX)),
        };
        let limit = if request.limit == 0 { 100 } else { request.limit.min(1000) };
        let rows = self.store.audit_log(since, limit).await.map_err(|error| unavailable("audit", &error))?;
        let entry = |row: AuditRow| v1::AuditEntry {
            number: row.number,
            time: row.time,
            who: row.who,
            role: row.role,
            call: row.call,
            subject: row.subject,
            revision: row.revision,
            outcome: row.outcome,
            from: row.origin,
        };
        Ok(v1::ListAuditResponse { entries: rows.into_iter().map(entry).collect() })
    }
}
