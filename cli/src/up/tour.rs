//! What `outrider up` shows, in plain words; every line is checked, not only printed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::{Method, StatusCode};
use outrider_proto::v1::{
    ApplyRequest, DecisionRecord, DeleteRequest, ExplainRequest, ListCertificatesRequest, Manifest, RotateCertificatesRequest,
    Side, WatchRolloutRequest, explain_request::Subject,
};
use tonic::Code;

use super::{mesh::Mesh, program};
use crate::{
    admin::Admin,
    failure::Failure,
    output::{Console, Tone},
};

const READS: &str = "\
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: orders-read, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  authorization:
    rules:
      - name: web-reads
        action: Allow
        from: [{ serviceAccounts: [shop/web] }]
        to:   [{ methods: [GET], paths: [\"/v1/orders/{id}\"] }]
";

const WRITES: &str = "\
apiVersion: outrider.dev/v1alpha1
kind: ServicePolicy
metadata: { name: orders-write, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  authorization:
    rules:
      - name: web-writes
        action: Allow
        from: [{ serviceAccounts: [shop/web] }]
        to:   [{ methods: [POST], paths: [\"/v1/orders\"] }]
";

/// How long anything of the tour may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Calls made while certificates rotate, at least.
const CALLS: u64 = 200;

/// Shows everything in order.
///
/// # Errors
/// At the first thing that is not as it should be.
pub(super) async fn run(mesh: &Mesh, console: &Console) -> Result<(), Failure> {
    let mut admin = mesh.admin.clone();
    identities(mesh, &mut admin, console).await?;
    // What an earlier tour added is taken back, so that the tour is the same each time. Other policies stay.
    if let Some(revision) = delete(&mut admin, "shop/orders-write").await? {
        in_force(&mut admin, revision).await?;
    }
    apply(&mut admin, "orders-read.yaml", READS).await?;
    passes(mesh, &mut admin, console).await?;
    refused(mesh, &mut admin, console).await?;
    second_rule(mesh, &mut admin, console).await?;
    rotation(mesh, &mut admin, console).await
}

fn wrong(what: impl Into<String>) -> Failure {
    Failure::Tour(what.into())
}

fn title(console: &Console, number: u32, text: &str) -> Result<(), Failure> {
    console.line(&console.paint(Tone::Good, &format!("{number}. {text}")))
}

async fn identities(mesh: &Mesh, admin: &mut Admin, console: &Console) -> Result<(), Failure> {
    title(console, 1, "Two services, each with an identity of its own, proved by a short-lived certificate")?;
    let listed = admin.list_certificates(ListCertificatesRequest { all: false }).await?.into_inner().certificates;
    for agent in [&mesh.web_agent, &mesh.orders_agent] {
        let svid = agent.svids.valid().ok_or_else(|| wrong("an agent holds no valid certificate"))?;
        let issued = listed.iter().find(|certificate| certificate.serial == svid.leaf.serial);
        let issued = issued.ok_or_else(|| wrong("the control plane does not know a certificate in use"))?;
        console.line(&format!("   {}", svid.leaf.id))?;
        let until = jiff::Timestamp::try_from(svid.leaf.not_after).map(|time| time.to_string()).unwrap_or_default();
        console.line(&format!("      serial {}, valid until {until}, signed by {}", svid.leaf.serial, issued.issuer))?;
    }
    console.line("")
}

async fn passes(mesh: &Mesh, admin: &mut Admin, console: &Console) -> Result<(), Failure> {
    title(console, 2, "Everything is denied but what a rule allows. One rule: web may GET /v1/orders/{id}")?;
    let answer = ask(mesh, Method::GET, "/v1/orders/7").await?;
    let record = recorded(admin, &answer.request_id).await?;
    if answer.status != StatusCode::OK || record.rule != "shop/orders-read/web-reads" {
        return Err(wrong(format!("GET /v1/orders/7 gave {} by rule `{}`", answer.status, record.rule)));
    }
    console.line(&format!("   GET /v1/orders/7 → {} {}", answer.status, answer.body.trim()))?;
    console.line(&format!("      who   {}", record.source))?;
    console.line(&format!("      over  {}", record.tls))?;
    console.line(&format!("      by    rule {} (revision {})\n", record.rule, record.revision))
}

async fn refused(mesh: &Mesh, admin: &mut Admin, console: &Console) -> Result<(), Failure> {
    title(console, 3, "Another call is refused: the caller learns nothing, the operator everything")?;
    let answer = ask(mesh, Method::POST, "/v1/orders").await?;
    let explained = explain(admin, &answer.request_id).await?;
    let record = inbound(&explained.records).ok_or_else(|| wrong("the refused call was not recorded"))?;
    if answer.status != StatusCode::FORBIDDEN || record.effect != "deny" {
        return Err(wrong(format!("POST /v1/orders gave {}, recorded as `{}`", answer.status, record.effect)));
    }
    console.line(&format!("   POST /v1/orders → {}, request id {}", answer.status, answer.request_id))?;
    console.line(&format!("      outrider explain {}", answer.request_id))?;
    console.line(&format!("      {}: {}", record.reason, record.detail))?;
    for miss in &explained.near_misses {
        console.line(&format!("      {} nearly matched: {}", miss.rule, miss.failed))?;
    }
    console.line("")
}

async fn second_rule(mesh: &Mesh, admin: &mut Admin, console: &Console) -> Result<(), Failure> {
    title(console, 4, "The same call after `outrider apply --wait` of a second rule")?;
    let started = std::time::Instant::now();
    let revision = apply(admin, "orders-write.yaml", WRITES).await?;
    console
        .line(&format!("   revision {revision} in force at every agent concerned after {} ms", started.elapsed().as_millis()))?;
    let answer = ask(mesh, Method::POST, "/v1/orders").await?;
    if answer.status != StatusCode::CREATED {
        return Err(wrong(format!("POST /v1/orders gave {} after the second rule", answer.status)));
    }
    let record = recorded(admin, &answer.request_id).await?;
    console.line(&format!("   POST /v1/orders → {}, by rule {}\n", answer.status, record.rule))
}

async fn rotation(mesh: &Mesh, admin: &mut Admin, console: &Console) -> Result<(), Failure> {
    title(console, 5, "Both certificates are rotated, with new keys, while calls go on")?;
    let serial = |agent: &outrider_agent::Agent| agent.svids.latest().map(|svid| svid.leaf.serial.clone()).unwrap_or_default();
    let before = [serial(&mesh.web_agent), serial(&mesh.orders_agent)];
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let calls = async {
        let mut lost = 0_u64;
        while !stop.load(Ordering::Relaxed) || made.load(Ordering::Relaxed) < CALLS {
            let answer = ask(mesh, Method::GET, "/v1/orders/7").await;
            lost += u64::from(!answer.is_ok_and(|answer| answer.status == StatusCode::OK));
            made.fetch_add(1, Ordering::Relaxed);
        }
        lost
    };
    let rotate = async {
        let rotated = rotate(admin).await;
        stop.store(true, Ordering::Relaxed);
        rotated
    };
    let (lost, rotated) = tokio::join!(calls, rotate);
    rotated?;
    let after = [serial(&mesh.web_agent), serial(&mesh.orders_agent)];
    for ((service, old), new) in ["shop/web", "shop/orders"].iter().zip(&before).zip(&after) {
        if old == new {
            return Err(wrong(format!("the certificate of {service} was not renewed")));
        }
        console.line(&format!("   {service}: {old} → {new}"))?;
    }
    let made = made.load(Ordering::Relaxed);
    if lost > 0 {
        return Err(wrong(format!("{lost} of {made} calls were lost during rotation")));
    }
    console.line(&format!("   {made} calls meanwhile, {lost} lost\n"))
}

async fn ask(mesh: &Mesh, method: Method, path: &str) -> Result<program::Answer, Failure> {
    let answer = tokio::time::timeout(PATIENCE, program::ask(mesh.web, method, path)).await;
    let answer = answer.map_err(|_| wrong("a call got no answer"))?;
    answer.map_err(|error| wrong(format!("a call failed: {error}")))
}

async fn apply(admin: &mut Admin, source: &str, yaml: &str) -> Result<u64, Failure> {
    let manifests = vec![Manifest { source: source.to_owned(), yaml: yaml.to_owned() }];
    let applied = admin.apply(ApplyRequest { manifests, ..ApplyRequest::default() }).await?.into_inner();
    let severe = applied.diagnostics.iter().find(|finding| finding.severity() == outrider_proto::v1::diagnostic::Severity::Error);
    if let Some(finding) = severe {
        return Err(wrong(format!("{source}:{}: {}", finding.line, finding.message)));
    }
    in_force(admin, applied.revision).await?;
    Ok(applied.revision)
}

/// Waits until a revision is in force at every agent concerned.
async fn in_force(admin: &mut Admin, revision: u64) -> Result<(), Failure> {
    let rollout = async {
        let mut progress = admin.watch_rollout(WatchRolloutRequest { revision }).await?.into_inner();
        while let Some(status) = progress.message().await? {
            if status.done {
                return match status.laggards.first() {
                    Some(laggard) => Err(wrong(format!("{} has not the policy: {}", laggard.identity, laggard.reason))),
                    None => Ok(()),
                };
            }
        }
        Err(wrong("the rollout was not followed to its end"))
    };
    tokio::time::timeout(PATIENCE, rollout).await.map_err(|_| wrong("a policy did not come into force in time"))?
}

/// Deletes a policy; tells the revision of the change, if it was there.
async fn delete(admin: &mut Admin, name: &str) -> Result<Option<u64>, Failure> {
    match admin.delete(DeleteRequest { kind: "ServicePolicy".to_owned(), names: vec![name.to_owned()] }).await {
        Ok(deleted) => Ok(Some(deleted.into_inner().revision)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

async fn rotate(admin: &mut Admin) -> Result<(), Failure> {
    let rotation = async {
        let mut progress = admin.rotate_certificates(RotateCertificatesRequest { identity: String::new() }).await?.into_inner();
        while let Some(status) = progress.message().await? {
            if status.done {
                return Ok(());
            }
        }
        Err(wrong("the rotation was not followed to its end"))
    };
    tokio::time::timeout(PATIENCE, rotation).await.map_err(|_| wrong("the certificates were not rotated in time"))?
}

fn inbound(records: &[DecisionRecord]) -> Option<&DecisionRecord> {
    records.iter().find(|record| record.side() == Side::Inbound)
}

/// Records arrive a moment after the answer.
async fn explain(admin: &mut Admin, request_id: &str) -> Result<outrider_proto::v1::ExplainResponse, Failure> {
    let found = async {
        loop {
            let request = ExplainRequest { subject: Some(Subject::RequestId(request_id.to_owned())) };
            match admin.explain(request).await {
                Ok(explained) if inbound(&explained.get_ref().records).is_some() => return Ok(explained.into_inner()),
                Ok(_) => {}
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(Failure::from(status)),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.map_err(|_| wrong(format!("request {request_id} was not recorded")))?
}

async fn recorded(admin: &mut Admin, request_id: &str) -> Result<DecisionRecord, Failure> {
    let explained = explain(admin, request_id).await?;
    inbound(&explained.records).cloned().ok_or_else(|| wrong("the call was not recorded at the callee"))
}
