//! `outrider get`: what the control plane knows, as lists.

use std::time::Duration;

use outrider_proto::v1::{
    ListAgentsRequest, ListAuditRequest, ListCertificatesRequest, ListDecisionsRequest, ListPoliciesRequest,
    ListRevisionsRequest, ListRoutesRequest, ListServicesRequest,
};

use crate::{
    args::Socket,
    failure::{Exit, Failure},
    names,
    output::Console,
    table::Row,
    view::{Agent, Audit, Certificate, Decision, Named, Policy, Revision, Route, Service},
    when,
};

/// List policies, routes, revisions, services, agents, decisions, certificates or the audit log.
///
/// With -o json or -o yaml the answer is always an array, also when one NAME is asked for.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outrider get policies
  outrider get policies shop/orders -o yaml
  outrider get services -n shop
  outrider get decisions --denied --limit 20
  outrider get agents -o json | jq '.[] | select(.connected | not) | .id'")]
pub(crate) struct Get {
    /// What to list
    #[arg(value_enum)]
    what: What,
    /// Only the one of this name: NAMESPACE/NAME, an agent's id, a request's id or a certificate's serial
    name: Option<String>,
    /// Only this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Decisions: only those that denied
    #[arg(long)]
    denied: bool,
    /// Decisions: only those for this service
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = names::namespaced)]
    to: Option<String>,
    /// Audit: only what happened within this time
    #[arg(long, value_parser = when::duration, value_name = "DURATION")]
    since: Option<Duration>,
    /// Decisions, revisions and audit: at most this many, newest first
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "COUNT")]
    limit: u32,
    /// Certificates: also those that were replaced but have not expired
    #[arg(long)]
    all: bool,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Stored policies and where they are in force
    #[value(aliases = ["policy", "servicepolicy", "servicepolicies"])]
    Policies,
    /// Stored routes, `HTTPRoute` and `GRPCRoute`, and where they are in force
    #[value(aliases = ["route", "httproute", "httproutes", "grpcroute", "grpcroutes"])]
    Routes,
    /// Revisions at which policies or routes changed: what there is to go back to
    #[value(alias = "revision")]
    Revisions,
    /// Services and who backs them
    #[value(alias = "service")]
    Services,
    /// Agents, connected or seen recently
    #[value(alias = "agent")]
    Agents,
    /// Decisions that agents recorded
    #[value(alias = "decision")]
    Decisions,
    /// Certificates that have not expired
    #[value(aliases = ["certificate", "certs", "cert"])]
    Certificates,
    /// Who changed what, or tried to
    Audit,
}

impl Get {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        self.check()?;
        let mut admin = socket.connect().await?;
        let namespace = self.namespace.clone().unwrap_or_default();
        match self.what {
            What::Policies => {
                let list = admin.list_policies(ListPoliciesRequest { namespace }).await?.into_inner();
                self.show::<_, Policy>(list.policies, "no policies: every call is denied (`outrider apply -f FILE`)", console)
            }
            What::Routes => {
                let list = admin.list_routes(ListRoutesRequest { namespace }).await?.into_inner();
                self.show::<_, Route>(list.routes, "no routes: requests go to the service that they name", console)
            }
            What::Revisions => {
                let list = admin.list_revisions(ListRevisionsRequest { limit: self.limit }).await?.into_inner();
                self.show::<_, Revision>(list.revisions, "no policy was ever applied", console)
            }
            What::Services => {
                let list = admin.list_services(ListServicesRequest { namespace }).await?.into_inner();
                self.show::<_, Service>(
                    list.services,
                    "no services: start one with `outrider run --service NAMESPACE/NAME`",
                    console,
                )
            }
            What::Agents => {
                let list = admin.list_agents(ListAgentsRequest {}).await?.into_inner();
                self.show::<_, Agent>(list.agents, "no agents: start one with `outrider run --service NAMESPACE/NAME`", console)
            }
            What::Decisions => {
                let destination = self.to.clone().unwrap_or_default();
                let request = ListDecisionsRequest { limit: self.limit, denied_only: self.denied, destination };
                let list = admin.list_decisions(request).await?.into_inner();
                self.show::<_, Decision>(list.decisions, "no decisions were recorded", console)
            }
            What::Certificates => {
                let list = admin.list_certificates(ListCertificatesRequest { all: self.all }).await?.into_inner();
                self.show::<_, Certificate>(list.certificates, "no certificates are valid", console)
            }
            What::Audit => {
                let since_seconds = self.since.map_or(0, |since| since.as_secs().max(1));
                let list = admin.list_audit(ListAuditRequest { since_seconds, limit: self.limit }).await?.into_inner();
                self.show::<_, Audit>(list.entries, "nobody changed anything", console)
            }
        }
    }

    /// A flag that would be ignored is an error: nobody should believe in a filter that did not filter.
    fn check(&self) -> Result<(), Failure> {
        let is_decisions = self.what == What::Decisions;
        if (self.denied || self.to.is_some()) && !is_decisions {
            return Err(Failure::Usage("`--denied` and `--to` go with `get decisions` only".into()));
        }
        if self.since.is_some() && self.what != What::Audit {
            return Err(Failure::Usage("`--since` goes with `get audit` only".into()));
        }
        if self.all && self.what != What::Certificates {
            return Err(Failure::Usage("`--all` goes with `get certificates` only".into()));
        }
        Ok(())
    }

    fn show<W, R: From<W> + Row + Named>(&self, list: Vec<W>, none: &str, console: &Console) -> Result<Exit, Failure> {
        let rows = select(list.into_iter().map(R::from).collect(), self.name.as_deref(), self.namespace.as_deref())?;
        console.rows(&rows, none)?;
        Ok(Exit::Done)
    }
}

/// The rows of a name and a namespace. A name that is not there is an error, an empty namespace is not.
fn select<R: Named>(mut rows: Vec<R>, name: Option<&str>, namespace: Option<&str>) -> Result<Vec<R>, Failure> {
    if let Some(namespace) = namespace {
        rows.retain(|row| row.namespace() == Some(namespace));
    }
    let Some(name) = name else { return Ok(rows) };
    let full = namespace.filter(|_| !name.contains('/')).map(|namespace| format!("{namespace}/{name}"));
    let is_wanted = |row: &R| row.name() == name || full.as_deref() == Some(row.name());
    if !rows.iter().any(is_wanted) {
        let nearest = names::nearest(full.as_deref().unwrap_or(name), rows.iter().map(Named::name));
        return Err(Failure::NotFound { kind: R::KIND, name: name.to_owned(), nearest });
    }
    rows.retain(is_wanted);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Thing(&'static str);

    impl Named for Thing {
        const KIND: &'static str = "thing";

        fn name(&self) -> &str {
            self.0
        }
    }

    fn names_of(name: Option<&str>, namespace: Option<&str>) -> Result<Vec<&'static str>, Failure> {
        let things = vec![Thing("shop/orders"), Thing("shop/web"), Thing("bank/ledger")];
        select(things, name, namespace).map(|rows| rows.iter().map(|row| row.0).collect())
    }

    #[test]
    fn names_and_namespaces_filter() {
        assert_eq!(names_of(None, Some("shop")).unwrap(), ["shop/orders", "shop/web"]);
        assert_eq!(names_of(Some("web"), Some("shop")).unwrap(), ["shop/web"]);
        assert_eq!(names_of(Some("bank/ledger"), None).unwrap(), ["bank/ledger"]);
        assert!(names_of(None, Some("empty")).unwrap().is_empty());
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error_with_the_nearest_one() {
        let failure = names_of(Some("shop/order"), None).unwrap_err();
        assert_eq!(failure.to_string(), "no thing `shop/order`");
        assert_eq!(failure.help().unwrap(), "did you mean `shop/orders`?");
        assert!(names_of(Some("ledger"), Some("shop")).is_err());
    }
}
