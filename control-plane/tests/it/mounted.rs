//! A CA that somebody else makes: its files sign, are followed when they change, and are refused when they are not whole.

use std::{path::Path, time::Duration};

use outrider_proto::v1::{self, Resource, ResourceKind, subscribe_response};
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use x509_parser::parse_x509_certificate;

use crate::harness::{Agent, Plane, Svid, by_renewal, csr, hello, settings, start};

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: Vec<u8>,
}

fn ca(name: &str, by: Option<&Ca>) -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = match by {
        Some(by) => params.signed_by(&key, &by.issuer),
        None => params.self_signed(&key),
    };
    let certificate = certificate.unwrap();
    Ca { pem: certificate.pem(), der: certificate.der().to_vec(), issuer: Issuer::new(params, key) }
}

/// As a kubelet does: a new directory, and then the link to it.
fn mount(dir: &Path, version: &str, signer: &Ca, bundle: &str) {
    let own = dir.join(version);
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("tls.crt"), &signer.pem).unwrap();
    std::fs::write(own.join("tls.key"), signer.issuer.key().serialize_pem()).unwrap();
    std::fs::write(own.join("ca.crt"), bundle).unwrap();
    let fresh = dir.join("fresh");
    std::os::unix::fs::symlink(&own, &fresh).unwrap();
    std::fs::rename(&fresh, dir.join("now")).unwrap();
}

/// The settings of a control plane that signs with what is mounted in `dir`.
fn mounted(raw: &mut outrider_control_plane::Raw, dir: &Path) {
    let now = dir.join("now");
    (raw.ca_cert, raw.ca_key, raw.ca_bundle) = (Some(now.join("tls.crt")), Some(now.join("tls.key")), Some(now.join("ca.crt")));
}

fn issuer_of(svid: &Svid) -> String {
    let (_, leaf) = parse_x509_certificate(&svid.chain[0]).unwrap();
    leaf.issuer().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
}

fn roots(resources: &[Resource]) -> Option<Vec<Vec<u8>>> {
    let bundle = resources.iter().find(|one| one.kind() == ResourceKind::TrustBundle)?;
    Some(v1::TrustBundle::decode(bundle.body.as_slice()).unwrap().roots)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_ca_signs_and_bad_files_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (old_root, new_root) = (ca("old root", None), ca("new root", None));
    let (first, second) = (ca("first issuer", Some(&old_root)), ca("second issuer", Some(&new_root)));
    mount(dir.path(), "1", &first, &old_root.pem);
    let plane = Plane::start_with(|raw| mounted(raw, dir.path())).await;
    let svid = plane.join("shop/web", &[]).await;
    assert_eq!((issuer_of(&svid).as_str(), svid.chain.len()), ("first issuer", 2));
    assert_eq!(svid.response.bundle.as_ref().unwrap().roots, std::slice::from_ref(&old_root.der));
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello("a1", &[], &[])).await;
    let update = agent.update().await;
    assert_eq!(roots(&update.upserts).unwrap(), std::slice::from_ref(&old_root.der));
    agent.ack(&update).await;

    // A key that is not that of the certificate: nothing changes, and operators hear of it.
    std::fs::write(dir.path().join("now/tls.key"), second.issuer.key().serialize_pem()).unwrap();
    let warned = async {
        loop {
            let status = plane.admin().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
            if status.warnings.iter().any(|text| text.contains("not that of the certificate")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, warned).await.unwrap();
    assert_eq!(issuer_of(&plane.join("shop/web", &[]).await), "first issuer");

    plane.stop().await;
}

/// Waits until the change to the next CA is in this phase and waits for these identities.
async fn handover(plane: &Plane, phase: v1::ca_rotation::Phase, waits_for: &[&str]) {
    let look = async {
        loop {
            let rotation = plane.admin().await.get_ca_rotation(v1::GetCaRotationRequest {}).await.unwrap().into_inner();
            let laggards: Vec<&str> = rotation.laggards.iter().filter_map(|one| one.identity.rsplit('/').next()).collect();
            if rotation.phase() == phase && laggards == waits_for {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, look).await.unwrap_or_else(|_| panic!("never: {phase:?} {waits_for:?}"));
}

/// The next update; orders to renew are passed over.
async fn next_update(agent: &mut Agent) -> v1::Update {
    loop {
        match agent.next().await.unwrap() {
            Some(subscribe_response::Message::Update(update)) => return update,
            Some(subscribe_response::Message::RenewIdentity(_)) => {}
            None => panic!("the stream ended"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_ca_signs_only_when_agents_have_acknowledged_its_root_and_the_one_before_stays_until_they_renewed() {
    use v1::ca_rotation::Phase;
    let dir = tempfile::tempdir().unwrap();
    let (old_root, new_root) = (ca("old root", None), ca("new root", None));
    let (first, second) = (ca("first issuer", Some(&old_root)), ca("second issuer", Some(&new_root)));
    mount(dir.path(), "1", &first, &old_root.pem);
    let plane = Plane::start_with(|raw| mounted(raw, dir.path())).await;
    let svid = plane.join("shop/web", &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello("a1", &[], &[])).await;
    let update = agent.update().await;
    agent.ack(&update).await;
    // The files change as a whole, and the old root is in them no more.
    mount(dir.path(), "2", &second, &new_root.pem);
    let update = agent.update().await;
    assert_eq!(roots(&update.upserts).unwrap(), [old_root.der.clone(), new_root.der.clone()], "both are believed");
    handover(&plane, Phase::Distributing, &["web"]).await;
    let meanwhile = plane.join("shop/late", &[]).await;
    assert_eq!(issuer_of(&meanwhile), "first issuer", "nobody acknowledged the new one");
    agent.ack(&update).await;
    // Somebody who is not connected holds a leaf and may not know the new root: an operator says when that is enough.
    handover(&plane, Phase::Distributing, &["late"]).await;
    let refused = plane.admin().await.rotate_ca(v1::RotateCaRequest::default()).await.unwrap_err();
    assert!(refused.message().contains("where it is made"), "{refused:?}");
    let skip = v1::RotateCaRequest { skip_away: true, ..v1::RotateCaRequest::default() };
    drop(plane.admin().await.rotate_ca(skip).await.unwrap());
    handover(&plane, Phase::Proving, &["web"]).await;
    let shown = next_update(&mut agent).await;
    assert_eq!(roots(&shown.upserts).unwrap(), [new_root.der.clone(), old_root.der.clone()]);
    agent.ack(&shown).await;
    let key = KeyPair::generate().unwrap();
    let renewed = Svid::new(&key, plane.issue(Some(&svid), by_renewal(csr(&key, |_| {}))).await.unwrap());
    assert_eq!(issuer_of(&renewed), "second issuer");
    // As an agent does: the next stream is of the new certificate.
    let mut agent = plane.subscribe(&renewed).await;
    agent.say(hello("a1", &[], &[])).await;
    loop {
        let shown = next_update(&mut agent).await;
        agent.ack(&shown).await;
        if roots(&shown.upserts).is_some_and(|roots| roots == std::slice::from_ref(&new_root.der)) {
            break;
        }
    }
    handover(&plane, Phase::Done, &[]).await;
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_control_plane_that_starts_again_in_the_middle_of_a_change_signs_nothing_that_agents_may_not_believe() {
    use v1::ca_rotation::Phase;
    let dir = tempfile::tempdir().unwrap();
    let (old_root, new_root) = (ca("old root", None), ca("new root", None));
    let (first, second) = (ca("first issuer", Some(&old_root)), ca("second issuer", Some(&new_root)));
    mount(dir.path(), "1", &first, &old_root.pem);
    let plane = Plane::start_with(|raw| mounted(raw, dir.path())).await;
    let svid = plane.join("shop/web", &[]).await;
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello("a1", &[], &[])).await;
    let update = agent.update().await;
    agent.ack(&update).await;
    mount(dir.path(), "2", &second, &new_root.pem);
    handover(&plane, Phase::Distributing, &["web"]).await;
    drop(agent);
    let plane = plane.restart_with(|raw| mounted(raw, dir.path())).await;
    // The agent has not come back: what it believes is what it had.
    handover(&plane, Phase::Distributing, &["web"]).await;
    assert_eq!(issuer_of(&plane.join("shop/late", &[]).await), "first issuer");
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello("a1", &[], &[])).await;
    let update = agent.update().await;
    assert_eq!(roots(&update.upserts).unwrap(), [old_root.der.clone(), new_root.der.clone()], "both are believed");
    agent.ack(&update).await;
    handover(&plane, Phase::Distributing, &["late"]).await;
    let skip = v1::RotateCaRequest { skip_away: true, ..v1::RotateCaRequest::default() };
    drop(plane.admin().await.rotate_ca(skip).await.unwrap());
    handover(&plane, Phase::Proving, &["web"]).await;
    drop(agent);
    let plane = plane.restart_with(|raw| mounted(raw, dir.path())).await;
    let status = plane.admin().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
    let believed: Vec<&str> = status.certificate_authorities.iter().map(|one| one.common_name.as_str()).collect();
    assert_eq!(believed, ["new root", "old root", "second issuer", "first issuer"], "the agent still has a leaf of the old one");
    assert_eq!(issuer_of(&plane.join("shop/web", &[]).await), "second issuer");
    plane.stop().await;
}

#[tokio::test]
async fn without_good_files_at_the_start_there_is_no_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let (root, other) = (ca("a root", None), ca("another root", None));
    mount(dir.path(), "1", &ca("issuer", Some(&root)), &other.pem);
    let mut raw = settings(dir.path());
    mounted(&mut raw, dir.path());
    let error = start(raw).await.err().unwrap().to_string();
    assert!(error.contains("does not verify against any root"), "{error}");
}
