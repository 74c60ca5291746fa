//! What must hold for any bytes. `agent/tests/fuzzing.rs` runs the same checks on a stable compiler.

use std::sync::OnceLock;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outrider_agent::{
    handover,
    http::{h1, h2},
    identity::JoinToken,
    mesh::{self, Violation},
    telemetry::TraceContext,
    tls::{Leaf, destination, server_name},
    workload::JwtKeys,
};
use outrider_proto::v1::{JwtBundle, JwtKey};

/// Frames of the mesh protocol: the first byte says whose side reads them and how they are cut.
pub fn mesh(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let (step, callee) = (usize::from(first >> 1) + 1, first & 1 == 0);
    let (cut, whole) = (mesh::digest(bytes, step, callee), mesh::digest(bytes, bytes.len().max(1), callee));
    // A budget earns with time, so that only floods may be judged in two ways.
    assert!(cut == whole || [cut, whole].contains(&Err(Violation::Flood)), "{cut:?} {whole:?}");
}

/// Messages of HTTP/1.1, heads and bodies one after another: the first byte as above. However they are cut they read the same, and
/// what is sent on of a head reads as that head.
pub fn http1(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let (step, requests) = (usize::from(first >> 1) + 1, first & 1 == 0);
    assert_eq!(h1::digest(bytes, step, requests), h1::digest(bytes, bytes.len().max(1), requests));
}

/// Frames of HTTP/2: they cost the same however they are cut.
pub fn http2(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let step = usize::from(*first) + 1;
    assert_eq!(h2::within_budget(bytes, step), h2::within_budget(bytes, bytes.len().max(1)));
}

/// Words that stand for something in handshakes, certificates, fields and on command lines.
pub fn names(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Some((service, port)) = destination(text) {
            assert_eq!(server_name(&service, port), text.to_ascii_lowercase(), "two names for one port");
        }
        let _ = text.parse::<JoinToken>();
    }
    if let Some(context) = TraceContext::parse(data) {
        assert_eq!(TraceContext::parse(&context.header()), Some(context));
    }
    if let Ok(leaf) = Leaf::parse(&data.to_vec().into()) {
        assert!(leaf.id.namespace().is_some() && !leaf.serial.is_empty());
    }
}

/// A record of a handover between two agents.
pub fn handover(data: &[u8]) {
    let mut bytes = [0; 256];
    let length = data.len().min(bytes.len());
    bytes[..length].copy_from_slice(&data[..length]);
    if let Some(again) = handover::reread(&bytes) {
        assert_eq!(handover::reread(&again), Some(again));
        assert_eq!(bytes[..2], again[..2]);
    }
}

const NOW: f64 = 1_800_000_000.0;

/// Who signs tokens here, and the keys to check them.
fn signer() -> &'static (EcdsaKeyPair, JwtKeys) {
    static SIGNER: OnceLock<(EcdsaKeyPair, JwtKeys)> = OnceLock::new();
    SIGNER.get_or_init(|| {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let key = JwtKey { id: "k1".to_owned(), point: pair.public_key().as_ref().to_vec() };
        let keys = JwtKeys::default();
        keys.replace(Some(&JwtBundle { trust_domain: "mesh.internal".to_owned(), keys: vec![key] })).expect("keys");
        (pair, keys)
    })
}

/// A token: as it is, and as claims that somebody signed whose key is known.
pub fn token(data: &[u8]) {
    let (pair, keys) = signer();
    assert!(keys.read(&String::from_utf8_lossy(data), "orders", NOW).is_err(), "a token that nobody signed");
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"k1"}"#), URL_SAFE_NO_PAD.encode(data));
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
    let Ok(claims) = keys.read(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())), "orders", NOW) else {
        return;
    };
    assert!(claims.all["exp"].as_f64().is_some_and(|end| end > NOW), "it has expired");
    let audience = &claims.all["aud"];
    assert!(audience == "orders" || audience.as_array().is_some_and(|all| all.iter().any(|one| one == "orders")));
    assert_eq!(claims.all["sub"], claims.subject.as_str());
    assert!(claims.subject.as_str().starts_with("spiffe://mesh.internal/ns/"));
}
