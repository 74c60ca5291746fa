//! The two programs of `outrider up`: plain HTTP services that know nothing of the mesh, except that `web` uses the proxy
//! that its environment would name.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{Path, State},
    http::{Method, StatusCode},
    response::IntoResponse,
    routing::{any, get},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use outrider_runtime::{Drain, Tasks};
use tokio::net::{TcpListener, TcpStream};

/// Largest answer that `web` passes on.
const ANSWER: usize = 1 << 20;

/// Starts `orders`: it lists and takes orders.
pub(super) async fn orders(tasks: &Tasks, drain: &Drain) -> std::io::Result<SocketAddr> {
    let router = Router::new()
        .route("/v1/orders/{id}", get(async |Path(id): Path<String>| format!("{{\"order\":\"{id}\",\"item\":\"saddle\"}}\n")))
        .route("/v1/orders", axum::routing::post(async || (StatusCode::CREATED, "{\"order\":\"8\"}\n")));
    serve(TcpListener::bind("127.0.0.1:0").await?, router, tasks, drain)
}

/// Starts `web` on `listener`: whatever it is asked, it asks `orders` through the proxy at `proxy`.
pub(super) fn web(listener: TcpListener, proxy: SocketAddr, tasks: &Tasks, drain: &Drain) -> std::io::Result<SocketAddr> {
    let forward =
        async |State(proxy): State<SocketAddr>, method: Method, uri: axum::http::Uri| match call(proxy, method, uri.path()).await
        {
            Ok(answer) => (answer.status, [("x-request-id", answer.request_id)], answer.body).into_response(),
            Err(error) => (StatusCode::BAD_GATEWAY, format!("{error}\n")).into_response(),
        };
    serve(listener, Router::new().fallback(any(forward)).with_state(proxy), tasks, drain)
}

fn serve(listener: TcpListener, router: Router, tasks: &Tasks, drain: &Drain) -> std::io::Result<SocketAddr> {
    let (address, stop) = (listener.local_addr()?, drain.clone());
    let serve = async move { axum::serve(listener, router).with_graceful_shutdown(async move { stop.stopping().await }).await };
    tasks.spawn("demo service", serve);
    Ok(address)
}

/// What `web` got.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) request_id: String,
    pub(super) body: String,
}

/// Calls `orders` as any program with `HTTP_PROXY` would.
pub(super) async fn call(
    proxy: SocketAddr,
    method: Method,
    path: &str,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    request(proxy, method, &format!("http://orders.shop{path}"), "orders.shop").await
}

/// Asks `web` itself.
pub(super) async fn ask(web: SocketAddr, method: Method, path: &str) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    request(web, method, path, &web.to_string()).await
}

async fn request(
    to: SocketAddr,
    method: Method,
    target: &str,
    host: &str,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(to).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder().method(method).uri(target).header("host", host).body(Full::<Bytes>::default())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
        let request_id = head.headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Answer {
            status: head.status,
            request_id,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    };
    tokio::select! {
        answer = exchange => answer,
        Err(error) = connection => Err(error.into()),
    }
}
