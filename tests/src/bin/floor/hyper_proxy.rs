//! A minimal proxy on hyper: what the library alone costs, with ten rules and nothing else.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{Either, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    rt::Executor,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use crate::{End, Side, tls};

/// Windows of HTTP/2, bytes.
const WINDOW: u32 = 1 << 20;

trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

type Answer = Response<Either<Incoming, Empty<Bytes>>>;

#[derive(Clone, Copy, Debug)]
struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}

struct Rule {
    method: Method,
    prefix: String,
    caller: String,
}

struct Proxy {
    end: End,
    http2: bool,
    connector: tokio_rustls::TlsConnector,
    rules: Vec<Rule>,
    idle: RefCell<Vec<http1::SendRequest<Incoming>>>,
    shared: RefCell<Option<http2::SendRequest<Incoming>>>,
    connecting: tokio::sync::Mutex<()>,
}

/// Runs one end for ever.
pub(crate) async fn run(end: End, http2: bool) -> anyhow::Result<()> {
    let listener = TcpListener::bind(end.listen).await?;
    let caller = |number: String| format!("spiffe://mesh.local/ns/default/sa/client{number}");
    let others = (0..9).map(|number| (Method::GET, format!("/api/v{number}/"), caller(format!("-{number}"))));
    let rules = others
        .chain([(Method::GET, "/".to_owned(), caller(String::new())), (Method::POST, "/".to_owned(), caller(String::new()))]);
    let proxy = Rc::new(Proxy {
        connector: tls::client(&end.certificates, &[if http2 { "h2" } else { "http/1.1" }])?,
        rules: rules.map(|(method, prefix, caller)| Rule { method, prefix, caller }).collect(),
        http2,
        idle: RefCell::default(),
        shared: RefCell::default(),
        connecting: tokio::sync::Mutex::default(),
        end,
    });
    let acceptor = tls::server(&proxy.end.certificates, &["h2", "http/1.1"])?;
    LocalSet::new()
        .run_until(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                tokio::task::spawn_local(accepted(proxy.clone(), acceptor.clone(), stream));
            }
        })
        .await
}

async fn accepted(proxy: Rc<Proxy>, acceptor: tokio_rustls::TlsAcceptor, stream: TcpStream) {
    if proxy.end.side == Side::Client {
        let mut begin = [0; 4];
        let http2 = matches!(stream.peek(&mut begin).await, Ok(4) if &begin == b"PRI ");
        return serve(proxy, stream, http2, None).await;
    }
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol() == Some(b"h2");
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    let caller = leaf.and_then(|leaf| tls::spiffe_id(leaf)).unwrap_or_default();
    serve(proxy, stream, http2, Some(caller.into())).await;
}

async fn serve(proxy: Rc<Proxy>, io: impl Io + 'static, http2: bool, caller: Option<Rc<str>>) {
    let service = service_fn(move |request| answer(proxy.clone(), caller.clone(), request));
    let io = TokioIo::new(io);
    // A connection that ends badly is the load generator's to notice.
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(Local);
        let _ = builder
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(16 * WINDOW)
            .serve_connection(io, service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().pipeline_flush(true).serve_connection(io, service).await;
    }
}

async fn answer(proxy: Rc<Proxy>, caller: Option<Rc<str>>, mut request: Request<Incoming>) -> hyper::Result<Answer> {
    let refused = |status| {
        let mut response = Response::new(Either::Right(Empty::new()));
        *response.status_mut() = status;
        Ok(response)
    };
    if let Some(caller) = &caller {
        let path = request.uri().path();
        let allows = |rule: &Rule| rule.method == *request.method() && path.starts_with(&rule.prefix) && rule.caller == **caller;
        if !proxy.rules.iter().any(allows) {
            return refused(StatusCode::FORBIDDEN);
        }
    }
    request.headers_mut().remove(header::CONNECTION);
    if proxy.http2 {
        let named = request.headers_mut().remove(header::HOST).and_then(|host| host.to_str().ok().map(str::to_owned));
        let authority = request.uri().authority().map(ToString::to_string).or(named).unwrap_or_default();
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        match Uri::builder().scheme("http").authority(authority).path_and_query(path).build() {
            Ok(uri) => *request.uri_mut() = uri,
            Err(_) => return refused(StatusCode::BAD_REQUEST),
        }
        *request.version_mut() = Version::HTTP_2;
    } else {
        // What came by HTTP/2 names its host in the URI; HTTP/1.1 wants a field, and the path alone.
        if let Some(authority) = request.uri().authority().and_then(|authority| authority.as_str().parse().ok()) {
            request.headers_mut().entry(header::HOST).or_insert(authority);
            let path = request.uri().path_and_query().and_then(|path| path.as_str().parse().ok());
            *request.uri_mut() = path.unwrap_or_default();
        }
        *request.version_mut() = Version::HTTP_11;
    }
    match proxy.send(request).await {
        Ok(mut response) => {
            response.headers_mut().remove(header::CONNECTION);
            *response.version_mut() = Version::HTTP_11;
            Ok(response.map(Either::Left))
        }
        Err(_) => refused(StatusCode::BAD_GATEWAY),
    }
}

impl Proxy {
    async fn send(&self, request: Request<Incoming>) -> anyhow::Result<Response<Incoming>> {
        if self.http2 {
            let shared = self.shared.borrow().clone();
            let mut sender = match shared {
                Some(sender) if sender.is_ready() => sender,
                _ => self.connect_http2().await?,
            };
            return Ok(sender.send_request(request).await?);
        }
        let at = self.idle.borrow().iter().rposition(http1::SendRequest::is_ready);
        let idle = at.map(|at| self.idle.borrow_mut().swap_remove(at));
        let mut sender = match idle {
            Some(sender) => sender,
            None => self.connect_http1().await?,
        };
        let response = sender.send_request(request).await;
        self.idle.borrow_mut().retain(|sender| !sender.is_closed());
        if !sender.is_closed() {
            self.idle.borrow_mut().push(sender);
        }
        Ok(response?)
    }

    async fn dial(&self) -> anyhow::Result<Box<dyn Io>> {
        let stream = TcpStream::connect(self.end.connect).await?;
        stream.set_nodelay(true)?;
        Ok(match self.end.side {
            Side::Client => Box::new(self.connector.connect(tls::NAME.try_into()?, stream).await?),
            Side::Server => Box::new(stream),
        })
    }

    async fn connect_http1(&self) -> anyhow::Result<http1::SendRequest<Incoming>> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.dial().await?)).await?;
        tokio::task::spawn_local(connection);
        sender.ready().await?;
        Ok(sender)
    }

    async fn connect_http2(&self) -> anyhow::Result<http2::SendRequest<Incoming>> {
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(sender) = self.shared.borrow().clone().filter(|sender| !sender.is_closed()) {
            return Ok(sender);
        }
        let mut builder = http2::Builder::new(Local);
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(16 * WINDOW);
        let (sender, connection) = builder.handshake(TokioIo::new(self.dial().await?)).await?;
        tokio::task::spawn_local(connection);
        *self.shared.borrow_mut() = Some(sender.clone());
        Ok(sender)
    }
}
