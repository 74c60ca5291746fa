//! `outrider explain`: what is decided for a call, by which rule, and which rules nearly matched.

use std::{net::IpAddr, path::PathBuf};

use jiff::Timestamp;
use outrider_policy::Answer;
use outrider_proto::v1::{self, CallDescription, ExplainRequest, ExplainResponse, HeaderValue, explain_request::Subject};
use serde::Serialize;

use crate::{
    args::Socket,
    failure::{Exit, Failure},
    local::{self, Local},
    manifest::Below,
    names,
    output::{Console, Tone, printable},
    table::{Cell, Row},
    view::Decision,
};

/// Say what the policies decide for a call, and why.
///
/// The call is described by flags, or it is a recorded one, named by the request id that its caller got. With -f and --call
/// policies and call come from files, and no control plane is asked. The exit code is 0 whatever the verdict is.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  outrider explain --from shop/web --to shop/orders GET /v1/orders/7
  outrider explain --from shop/web --to shop/orders --header 'x-tenant: acme' POST /v1/orders
  outrider explain --to shop/db --port 5432
  outrider explain 01932f6e-3b5c-7c3a-9d53-6a1f6f2f9a10
  outrider explain -f policies/ --call call.json -o json")]
pub(crate) struct Explain {
    /// Method and path of the described call (neither for opaque TCP), or the id of a recorded request
    #[arg(value_name = "METHOD PATH | REQUEST-ID", num_args = 0..=2)]
    subject: Vec<String>,
    /// The caller: SPIFFE ID or NAMESPACE/SERVICE-ACCOUNT; a caller without identity when absent
    #[arg(long, value_name = "IDENTITY", value_parser = names::identity, requires = "to")]
    from: Option<String>,
    /// The service that is called
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = names::namespaced)]
    to: Option<String>,
    /// The port that is called; not needed when the service has one
    #[arg(long, requires = "to", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The caller's IP address
    #[arg(long, value_name = "IP", requires = "to")]
    source_ip: Option<IpAddr>,
    /// Host of the call [default: NAME.NAMESPACE]
    #[arg(long, requires = "to")]
    host: Option<String>,
    /// Header of the call, may stand several times
    #[arg(long = "header", value_name = "NAME:VALUE", value_parser = header, requires = "to")]
    headers: Vec<(String, String)>,
    /// Decide by the policies of these files instead of asking a control plane
    #[arg(short, long = "file", value_name = "FILE|DIR|-", requires = "call")]
    files: Vec<PathBuf>,
    /// The call as JSON or YAML: `source`, `destination` and `request`
    #[arg(long, value_name = "FILE", requires = "files", conflicts_with_all = ["subject", "to"])]
    call: Option<PathBuf>,
}

/// The answer of `explain`. The shape that programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    /// `allow` or `deny`.
    effect: String,
    /// `namespace/policy/rule`; none when nothing matched.
    rule: Option<String>,
    /// Store revision; none for policies from files.
    revision: Option<u64>,
    /// Why agents refuse the request before any rule, if they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// Rules that did not match, nearest first.
    near_misses: Vec<NearMiss>,
    /// What agents recorded, for a recorded request.
    records: Vec<Decision>,
    /// Remarks.
    notes: Vec<String>,
}

/// A rule that did not match.
#[derive(Debug, Serialize)]
struct NearMiss {
    rule: String,
    /// `allow`, `deny` or `audit`.
    action: String,
    /// Conditions that held before one failed.
    held: u32,
    /// The first condition that failed.
    failed: String,
}

impl Row for NearMiss {
    const COLUMNS: &'static [&'static str] = &["RULE", "ACTION", "HELD", "FIRST CONDITION THAT FAILED"];

    fn cells(&self, _: Timestamp) -> Vec<Cell> {
        vec![self.rule.as_str().into(), self.action.as_str().into(), self.held.to_string().into(), self.failed.as_str().into()]
    }
}

impl From<ExplainResponse> for Explanation {
    fn from(wire: ExplainResponse) -> Self {
        let near_miss = |one: v1::NearMiss| NearMiss { rule: one.rule, action: one.action, held: one.held, failed: one.failed };
        Self {
            effect: wire.effect,
            rule: Some(wire.rule).filter(|rule| !rule.is_empty()),
            revision: Some(wire.revision).filter(|_| wire.refused.is_empty()),
            refused: Some(wire.refused).filter(|refused| !refused.is_empty()),
            near_misses: wire.near_misses.into_iter().map(near_miss).collect(),
            records: wire.records.into_iter().map(Decision::from).collect(),
            notes: wire.notes,
        }
    }
}

impl From<Answer> for Explanation {
    fn from(answer: Answer) -> Self {
        let near_miss = |one: outrider_policy::NearMiss| NearMiss {
            rule: one.rule,
            action: one.action.to_string().to_lowercase(),
            held: u32::try_from(one.held).unwrap_or(u32::MAX),
            failed: one.failed,
        };
        let audited = answer.audited.into_iter().map(|rule| format!("audited by {rule}"));
        Self {
            effect: answer.effect.to_string(),
            rule: answer.rule,
            revision: None,
            refused: answer.refused,
            near_misses: answer.near_misses.into_iter().map(near_miss).collect(),
            records: Vec::new(),
            notes: audited.collect(),
        }
    }
}

impl Explain {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        if let Some(call) = &self.call {
            let local = Local::read(&self.files, Below::Ignored, console)?;
            let answer = local::call(call, console)?.answer(&local.policies);
            Explanation::from(answer.map_err(|problem| Failure::Invalid(problem.to_string()))?).tell(console)?;
            return Ok(Exit::Done);
        }
        if !self.files.is_empty() {
            // A verdict of other policies than the ones that were named would be believed.
            return Err(Failure::Usage("`-f` decides a call from a file: name it with `--call CALL.json`".into()));
        }
        let request = ExplainRequest { subject: Some(self.subject()?) };
        let answer = socket.connect().await?.explain(request).await?.into_inner();
        Explanation::from(answer).tell(console)?;
        Ok(Exit::Done)
    }

    fn subject(self) -> Result<Subject, Failure> {
        let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
        let mut words = self.subject.into_iter();
        let (first, second) = (words.next(), words.next());
        let Some(destination) = self.to else {
            return match (first, second) {
                (Some(request_id), None) => Ok(Subject::RequestId(request_id)),
                (None, _) => usage("name a recorded request's id, or describe a call with `--to NAMESPACE/NAME`"),
                (Some(_), Some(_)) => usage("a described call needs `--to NAMESPACE/NAME`"),
            };
        };
        let (method, path) = match (first, second) {
            (Some(method), Some(path)) if path.starts_with('/') || path == "*" => (method, path),
            (None, _) => Default::default(),
            _ => return usage("a described call is METHOD and PATH, for example `GET /v1/orders/7`, or neither for opaque TCP"),
        };
        let default_host =
            || destination.split_once('/').map_or_else(String::new, |(namespace, name)| format!("{name}.{namespace}"));
        let host = if method.is_empty() { String::new() } else { self.host.unwrap_or_else(default_host) };
        Ok(Subject::Call(CallDescription {
            source: self.from.unwrap_or_default(),
            source_ip: self.source_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            port: self.port.map_or(0, u32::from),
            headers: self.headers.into_iter().map(|(name, value)| HeaderValue { name, value: value.into_bytes() }).collect(),
            destination,
            method,
            host,
            path,
        }))
    }
}

impl Explanation {
    /// Writes it in the format the user chose.
    pub(crate) fn tell(&self, console: &Console) -> Result<(), Failure> {
        if !console.is_for_people() {
            return console.value(self);
        }
        if !self.records.is_empty() {
            console.table(&self.records)?;
            console.line("")?;
        }
        let tone = if self.effect == "allow" { Tone::Good } else { Tone::Bad };
        let why = match (&self.refused, &self.rule) {
            (Some(refused), _) => refused.clone(),
            (None, Some(rule)) => format!("by {rule}"),
            (None, None) => "no rule matches, and what no rule allows is denied".to_owned(),
        };
        let revision = self.revision.map_or_else(String::new, |revision| format!(" (revision {revision})"));
        console.line(&format!("{}  {}{revision}", console.paint(tone, &printable(&self.effect)), printable(&why)))?;
        if !self.near_misses.is_empty() {
            console.line("\nRules that nearly matched, nearest first:")?;
            console.table(&self.near_misses)?;
        }
        for note in &self.notes {
            console.line(&printable(&format!("note: {note}")))?;
        }
        Ok(())
    }
}

/// Reads `name: value`; names are not case-sensitive on the wire.
fn header(text: &str) -> Result<(String, String), String> {
    let is_token = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    match text.split_once(':') {
        Some((name, value)) if is_token(name) => Ok((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned())),
        _ => Err(format!("`{text}` is not NAME:VALUE, for example `x-tenant: acme`")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        explain: Explain,
    }

    fn subject(line: &[&str]) -> Result<Subject, String> {
        let words = std::iter::once("explain").chain(line.iter().copied());
        let parsed = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        parsed.explain.subject().map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_described_call_travels_with_the_services_own_host() {
        let Ok(Subject::Call(call)) =
            subject(&["--from", "shop/web", "--to", "shop/orders", "--header", "X-Tenant:  acme ", "GET", "/v1/orders/7"])
        else {
            panic!("a call")
        };
        assert_eq!((call.host.as_str(), call.method.as_str(), call.path.as_str()), ("orders.shop", "GET", "/v1/orders/7"));
        assert_eq!((call.headers[0].name.as_str(), call.headers[0].value.as_slice()), ("x-tenant", b"acme".as_slice()));
    }

    #[test]
    fn one_word_without_a_destination_is_a_request_id() {
        assert_eq!(subject(&["abc"]), Ok(Subject::RequestId("abc".into())));
    }

    #[test]
    fn half_described_calls_are_refused_with_the_way_out() {
        for line in [
            &["GET", "/a"][..],
            &[],
            &["--to", "shop/orders", "GET"],
            &["--to", "shop/orders", "GET", "v1"],
            &["--from", "shop/web", "abc"],
        ] {
            assert!(subject(line).unwrap_err().contains("--to") || line.contains(&"--to"), "{line:?}");
        }
        assert!(subject(&["--to", "shop/orders", "--header", "nonsense", "GET", "/"]).unwrap_err().contains("NAME:VALUE"));
        assert!(
            matches!(subject(&["--to", "shop/db", "--port", "5432"]), Ok(Subject::Call(call)) if call.method.is_empty() && call.port == 5432)
        );
    }
}
