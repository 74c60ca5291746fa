//! Tokens (JWT-SVIDs) over the wire: who gets which, and which keys agents are told of.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outrider_proto::v1::{self, identity_client::IdentityClient};
use tonic::Code;

use crate::harness::{Plane, Svid};

const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";

async fn token(plane: &Plane, svid: Option<&Svid>, audience: &[&str]) -> Result<v1::IssueJwtResponse, Code> {
    let request = v1::IssueJwtRequest { audience: audience.iter().map(ToString::to_string).collect() };
    let answer = IdentityClient::new(plane.connect(svid).await.unwrap()).issue_jwt(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| status.code())
}

#[tokio::test]
async fn a_token_names_the_identity_of_the_connection_and_nobody_else() {
    let plane = Plane::start().await;
    let web = plane.join("shop/web", &[]).await;
    assert_eq!(token(&plane, None, &["orders"]).await.unwrap_err(), Code::Unauthenticated);
    let good = token(&plane, Some(&web), &["orders", "files"]).await.unwrap();
    assert_eq!(good.identity, WEB);
    assert!((1..=300).contains(&(good.expires_at - good.issued_at)));
    let parts: Vec<&str> = good.token.split('.').collect();
    let read = |part: &str| serde_json::from_slice::<serde_json::Value>(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    let (header, claims) = (read(parts[0]), read(parts[1]));
    assert_eq!((header["alg"].as_str(), header.as_object().unwrap().len()), (Some("ES256"), 3));
    assert_eq!((claims["sub"].as_str(), claims["exp"].as_i64()), (Some(WEB), Some(good.expires_at)));
    assert_eq!(claims["aud"], serde_json::json!(["orders", "files"]));
    plane.stop().await;
}

#[tokio::test]
async fn an_audience_that_is_missing_too_long_or_too_many_is_refused() {
    let plane = Plane::start().await;
    let web = plane.join("shop/web", &[]).await;
    let long = "a".repeat(257);
    for bad in [&[][..], &[""], &[long.as_str()], &["a"; 17], &["a\nb"]] {
        assert_eq!(token(&plane, Some(&web), bad).await.unwrap_err(), Code::InvalidArgument);
    }
    plane.stop().await;
}

#[tokio::test]
async fn keys_outlive_a_restart() {
    let plane = Plane::start().await;
    let web = plane.join("shop/web", &[]).await;
    let kid = |token: &str| token.split('.').next().unwrap().to_owned();
    let before = token(&plane, Some(&web), &["orders"]).await.unwrap().token;
    let plane = plane.restart_with(|_| {}).await;
    let after = token(&plane, Some(&web), &["orders"]).await.unwrap().token;
    assert_eq!(kid(&before), kid(&after));
    plane.stop().await;
}
