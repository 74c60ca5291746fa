//! The health port: `/livez`, `/readyz` and `/metrics`, plain HTTP, read-only.

use std::sync::Arc;

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::{Drain, Readiness};

/// Media type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until drain. `/readyz` answers 503 and names the closed gates until all are open, and again while draining.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, readiness: Readiness, metrics: Arc<Registry>, drain: Drain) -> std::io::Result<()> {
    let stop = drain.clone();
    let ready = move || {
        let (readiness, drain) = (readiness.clone(), drain.clone());
        async move {
            let missing = readiness.missing();
            if drain.is_stopping() {
                (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned())
            } else if missing.is_empty() {
                (StatusCode::OK, "ready\n".to_owned())
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}\n", missing.join(", ")))
            }
        }
    };
    let router = Router::new()
        .route("/livez", get(async || "live\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(move || std::future::ready(encode(&metrics))));
    axum::serve(listener, router).with_graceful_shutdown(async move { stop.stopping().await }).await
}

fn encode(metrics: &Registry) -> impl IntoResponse + use<> {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, metrics) {
        Ok(()) => (StatusCode::OK, [(CONTENT_TYPE, OPENMETRICS)], text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], String::new()),
    }
}
