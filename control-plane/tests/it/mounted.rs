//! A CA that somebody else makes: its files sign, are followed when they change, and are refused when they are not whole.

use std::{path::Path, time::Duration};

use outrider_proto::v1::{self, Resource, ResourceKind};
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use x509_parser::parse_x509_certificate;

use crate::harness::{Plane, hello, settings, start};

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

fn issuer_of(svid: &crate::harness::Svid) -> String {
    let (_, leaf) = parse_x509_certificate(&svid.chain[0]).unwrap();
    leaf.issuer().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
}

fn roots(resources: &[Resource]) -> Option<Vec<Vec<u8>>> {
    let bundle = resources.iter().find(|one| one.kind() == ResourceKind::TrustBundle)?;
    Some(v1::TrustBundle::decode(bundle.body.as_slice()).unwrap().roots)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_ca_signs_and_is_followed_when_its_files_change_and_bad_files_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (old_root, new_root) = (ca("old root", None), ca("new root", None));
    let (first, second) = (ca("first issuer", Some(&old_root)), ca("second issuer", Some(&new_root)));
    mount(dir.path(), "1", &first, &old_root.pem);
    let now = dir.path().join("now");
    let plane = Plane::start_with(|raw| {
        raw.ca_cert = Some(now.join("tls.crt"));
        raw.ca_key = Some(now.join("tls.key"));
        raw.ca_bundle = Some(now.join("ca.crt"));
    })
    .await;
    let svid = plane.join("shop/web", &[]).await;
    assert_eq!((issuer_of(&svid).as_str(), svid.chain.len()), ("first issuer", 2));
    assert_eq!(svid.response.bundle.as_ref().unwrap().roots, std::slice::from_ref(&old_root.der));
    let mut agent = plane.subscribe(&svid).await;
    agent.say(hello("a1", &[], &[])).await;
    let update = agent.update().await;
    assert_eq!(roots(&update.upserts).unwrap(), std::slice::from_ref(&old_root.der));
    agent.ack(&update).await;

    // A key that is not that of the certificate: nothing changes, and operators hear of it.
    std::fs::write(now.join("tls.key"), second.issuer.key().serialize_pem()).unwrap();
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

    // Both roots and the new signer at once: agents get the bundle, and leaves come from the new one.
    mount(dir.path(), "2", &second, &format!("{}{}", old_root.pem, new_root.pem));
    let update = agent.update().await;
    assert_eq!(roots(&update.upserts).unwrap(), [new_root.der.clone(), old_root.der.clone()]);
    agent.ack(&update).await;
    let svid = plane.join("shop/web", &[]).await;
    assert_eq!(issuer_of(&svid), "second issuer");
    let refused = plane.admin().await.rotate_ca(v1::RotateCaRequest::default()).await.unwrap_err();
    assert!(refused.message().contains("where it is made"), "{refused:?}");
    plane.stop().await;
}

#[tokio::test]
async fn without_good_files_at_the_start_there_is_no_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let (root, other) = (ca("a root", None), ca("another root", None));
    mount(dir.path(), "1", &ca("issuer", Some(&root)), &other.pem);
    let now = dir.path().join("now");
    let mut raw = settings(dir.path());
    raw.ca_cert = Some(now.join("tls.crt"));
    raw.ca_key = Some(now.join("tls.key"));
    raw.ca_bundle = Some(now.join("ca.crt"));
    let error = start(raw).await.err().unwrap().to_string();
    assert!(error.contains("does not verify against any root"), "{error}");
}
