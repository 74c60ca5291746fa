//! gRPC through a pair of agents, with tonic at both ends: every kind of call, metadata and messages of size, cancellation,
//! deadlines, refusals in gRPC's words, and agents that leave under load.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use outrider_tests::{AgentOptions, AgentProcess, Mesh, MeshOptions, Outcome, allow, free_port, until};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, channel, unbounded_channel},
    task::JoinSet,
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{BinaryMetadataValue, MetadataMap},
    server::NamedService,
    transport::{Channel, Endpoint, Server},
};
use tower::service_fn;

/// Longest message of these tests.
const LARGEST: usize = 32 << 20;

/// Messages that are just bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = source.remaining();
        Ok(Some(source.copy_to_bytes(length)))
    }
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Tells when a call is over at the program, whatever way.
struct Over(UnboundedSender<&'static str>, &'static str);

impl Drop for Over {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

/// A program of gRPC.
#[derive(Clone)]
struct Echo {
    over: UnboundedSender<&'static str>,
}

impl NamedService for Echo {
    const NAME: &'static str = "pkg.Echo";
}

/// The message back, with what of the metadata is to be echoed.
async fn unary(request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    let kept: MetadataMap = {
        let mut kept = request.metadata().clone().into_headers();
        for name in request.metadata().clone().into_headers().keys().filter(|name| !name.as_str().starts_with("x-echo")) {
            kept.remove(name);
        }
        MetadataMap::from_headers(kept)
    };
    let mut response = Response::new(request.into_inner());
    *response.metadata_mut() = kept;
    Ok(response)
}

async fn fail(_: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    let mut metadata = MetadataMap::new();
    metadata.insert_bin("x-cause-bin", BinaryMetadataValue::from_bytes(&[0, 255, 10, 13]));
    Err(Status::with_details_and_metadata(Code::FailedPrecondition, "100% näh\n", Bytes::from_static(b"\0why"), metadata))
}

async fn collect(request: Request<Streaming<Bytes>>) -> Result<Response<Bytes>, Status> {
    let (mut all, mut messages) = (Vec::new(), request.into_inner());
    while let Some(message) = messages.message().await? {
        all.extend_from_slice(&message);
    }
    Ok(Response::new(all.into()))
}

async fn split(request: Request<Bytes>) -> Result<Response<Pieces>, Status> {
    let pieces: Vec<_> = request.into_inner().chunks(10_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
}

async fn chat(request: Request<Streaming<Bytes>>) -> Result<Response<Pieces>, Status> {
    Ok(Response::new(Box::pin(request.into_inner())))
}

impl Echo {
    /// Goes on until nobody listens.
    fn endless(&self) -> Response<Pieces> {
        let over = Over(self.over.clone(), "endless");
        let pieces = std::iter::repeat_with(move || {
            let _held = &over;
            Ok(Bytes::from_static(&[7; 1000]))
        });
        Response::new(Box::pin(tokio_stream::iter(pieces)))
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Echo {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let own = self.clone();
        Box::pin(async move {
            let grpc = tonic::server::Grpc::new(Plain);
            let mut grpc = grpc.max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
            let method = request.uri().path().to_owned();
            Ok(match method.as_str() {
                "/pkg.Echo/Unary" => grpc.unary(service_fn(unary), request).await,
                "/pkg.Echo/Fail" => grpc.unary(service_fn(fail), request).await,
                "/pkg.Echo/Collect" => grpc.client_streaming(service_fn(collect), request).await,
                "/pkg.Echo/Split" => grpc.server_streaming(service_fn(split), request).await,
                "/pkg.Echo/Chat" => grpc.streaming(service_fn(chat), request).await,
                "/pkg.Echo/Endless" => {
                    let endless = service_fn(move |_: Request<Bytes>| std::future::ready(Ok::<_, Status>(own.endless())));
                    grpc.server_streaming(endless, request).await
                }
                _ => {
                    let never = service_fn(move |_: Request<Bytes>| {
                        let over = Over(own.over.clone(), "never");
                        async move {
                            std::future::pending::<()>().await;
                            drop(over);
                            Ok::<_, Status>(Response::new(Bytes::new()))
                        }
                    });
                    grpc.unary(never, request).await
                }
            })
        })
    }
}

async fn program(tasks: &mut JoinSet<()>) -> (SocketAddr, UnboundedReceiver<&'static str>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let (address, (over, overs)) = (listener.local_addr().expect("address"), unbounded_channel());
    tasks.spawn(async move {
        let server = Server::builder().http2_max_header_list_size(64 << 10).add_service(Echo { over });
        let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
    });
    (address, overs)
}

/// A mesh in which shop/web calls shop/echo, from a port of its own.
struct Scene {
    mesh: Mesh,
    echo: AgentProcess,
    web: AgentProcess,
    port: SocketAddr,
    program: SocketAddr,
    overs: UnboundedReceiver<&'static str>,
    tasks: JoinSet<()>,
}

impl Scene {
    async fn set() -> Self {
        let mut tasks = JoinSet::new();
        let (program, overs) = program(&mut tasks).await;
        let mesh = Mesh::start(MeshOptions::default()).await;
        let services = vec![format!("shop/echo:50051/grpc={program}")];
        let echo = mesh.agent("shop/echo", AgentOptions { services, ..AgentOptions::default() }).await;
        let port = free_port();
        let upstreams = vec![format!("{port}=shop/echo:50051")];
        let web = mesh.agent("shop/web", AgentOptions { upstreams, ..AgentOptions::default() }).await;
        let methods =
            "[Unary, Fail, Collect, Split, Chat, Endless, Never]".replace('[', "[/pkg.Echo/").replace(", ", ", /pkg.Echo/");
        mesh.apply(&allow("echo", "shop/echo", "[shop/web]", "[POST]", &methods));
        Self { mesh, echo, web, port: SocketAddr::from(([127, 0, 0, 1], port)), program, overs, tasks }
    }

    async fn channel(&self) -> Channel {
        connect(self.port).await
    }
}

async fn connect(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address").http2_max_header_list_size(64 << 10);
    endpoint.origin("http://echo.shop".parse().expect("an origin")).connect().await.expect("a connection")
}

async fn client(channel: &Channel) -> Result<tonic::client::Grpc<Channel>, Status> {
    let client = tonic::client::Grpc::new(channel.clone());
    let mut client = client.max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    Ok(client)
}

fn path(method: &'static str) -> http::uri::PathAndQuery {
    http::uri::PathAndQuery::from_static(method)
}

async fn call(channel: &Channel, method: &'static str, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    client(channel).await?.unary(request, path(method), Plain).await
}

/// Every kind of call once: what a caller sees of them, in words.
async fn every_kind(address: SocketAddr) -> Result<Vec<String>, Status> {
    let channel = connect(address).await;
    let mut seen = Vec::new();
    let answer = call(&channel, "/pkg.Echo/Unary", Request::new(Bytes::from_static(b"one"))).await?;
    seen.push(format!("{:?}", answer.into_inner()));
    seen.push(format!("{:?}", call(&channel, "/pkg.Echo/Unary", Request::new(Bytes::new())).await?.into_inner()));
    let refused = call(&channel, "/pkg.Echo/Fail", Request::new(Bytes::new())).await.expect_err("it fails");
    let cause = refused.metadata().get_bin("x-cause-bin").and_then(|value| value.to_bytes().ok());
    seen.push(format!("{:?} {:?} {:?} {cause:?}", refused.code(), refused.message(), refused.details()));

    let pieces: Vec<Bytes> = (0..100_u8).map(|number| Bytes::from(vec![number; 5000])).collect();
    let all = client(&channel).await?;
    let all =
        { all }.client_streaming(Request::new(tokio_stream::iter(pieces.clone())), path("/pkg.Echo/Collect"), Plain).await?;
    seen.push(format!("{} bytes, {}", all.get_ref().len(), *all.get_ref() == pieces.concat()));
    let mut split = client(&channel)
        .await?
        .server_streaming(Request::new(Bytes::from(pieces.concat())), path("/pkg.Echo/Split"), Plain)
        .await?
        .into_inner();
    let (mut count, mut whole) = (0, Vec::new());
    while let Some(piece) = split.message().await? {
        count += 1;
        whole.extend_from_slice(&piece);
    }
    seen.push(format!("{count} messages, {}", whole == pieces.concat()));

    // Each message is answered before the next is sent.
    let (send, receive) = channel_of(1);
    let mut chat = client(&channel)
        .await?
        .streaming(Request::new(ReceiverStream::new(receive)), path("/pkg.Echo/Chat"), Plain)
        .await?
        .into_inner();
    for number in 0..20_u8 {
        let message = Bytes::from(vec![number; usize::from(number) * 1000]);
        send.send(message.clone()).await.expect("sent");
        let answer = chat.message().await?;
        seen.push(format!("{number}: {}", answer == Some(message)));
    }
    drop(send);
    seen.push(format!("{:?}", chat.message().await?));
    Ok(seen)
}

fn channel_of(size: usize) -> (tokio::sync::mpsc::Sender<Bytes>, tokio::sync::mpsc::Receiver<Bytes>) {
    channel(size)
}

#[tokio::test]
async fn every_kind_of_call_is_the_same_through_the_pair_as_without_it() -> Outcome {
    let scene = Scene::set().await;
    let direct = every_kind(scene.program).await?;
    assert!(direct.iter().all(|line| !line.contains("false")), "the control: {direct:#?}");
    assert!(direct.iter().any(|line| line.contains("FailedPrecondition") && line.contains("100% näh")), "{direct:#?}");
    assert_eq!(every_kind(scene.port).await?, direct);
    Ok(())
}

#[tokio::test]
async fn large_metadata_and_large_messages_pass_whole() -> Outcome {
    let scene = Scene::set().await;
    let channel = scene.channel().await;
    let mut request = Request::new(Bytes::new());
    let binary: Vec<u8> = (0..=255).collect();
    for number in 0..40 {
        let name = format!("x-echo-{number}");
        request.metadata_mut().insert(name.parse::<tonic::metadata::AsciiMetadataKey>()?, "v".repeat(500).parse()?);
    }
    request.metadata_mut().insert_bin("x-echo-bin", BinaryMetadataValue::from_bytes(&binary));
    let answer = call(&channel, "/pkg.Echo/Unary", request).await?;
    let echoed = answer
        .metadata()
        .keys()
        .filter(|key| matches!(key, tonic::metadata::KeyRef::Ascii(key) if key.as_str().starts_with("x-echo")))
        .count();
    assert_eq!(echoed, 40);
    assert_eq!(answer.metadata().get_bin("x-echo-bin").expect("binary").to_bytes()?, binary);

    let large: Bytes = (0..16_u32 << 20).map(|at| (at % 253) as u8).collect();
    let answer = call(&channel, "/pkg.Echo/Unary", Request::new(large.clone())).await?;
    assert!(answer.into_inner() == large, "16 MiB there and back");
    Ok(())
}

#[tokio::test]
async fn a_program_learns_that_its_caller_has_cancelled() -> Outcome {
    let mut scene = Scene::set().await;
    let channel = scene.channel().await;
    let mut stream = client(&channel)
        .await?
        .server_streaming(Request::new(Bytes::new()), path("/pkg.Echo/Endless"), Plain)
        .await?
        .into_inner();
    assert_eq!(stream.message().await?.expect("a message").len(), 1000);
    drop(stream);
    let over = tokio::time::timeout(Duration::from_secs(5), scene.overs.recv()).await?;
    assert_eq!(over, Some("endless"));

    let never = call(&channel, "/pkg.Echo/Never", Request::new(Bytes::new()));
    assert!(tokio::time::timeout(Duration::from_millis(500), never).await.is_err(), "it never answers");
    let over = tokio::time::timeout(Duration::from_secs(5), scene.overs.recv()).await?;
    assert_eq!(over, Some("never"));
    Ok(())
}

/// What a caller who is no library sees: status, fields, and whether that was all.
async fn raw(address: SocketAddr, method: &str, timeout: &str) -> Result<(http::Response<()>, bool), h2::Error> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (client, connection) = h2::client::handshake(stream).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let mut request = http::Request::post(format!("http://echo.shop{method}"));
    request = request.header("content-type", "application/grpc").header("te", "trailers");
    if !timeout.is_empty() {
        request = request.header("grpc-timeout", timeout);
    }
    let (response, mut send) = client.ready().await?.send_request(request.body(()).expect("a request"), false)?;
    send.send_data(Bytes::from_static(&[0; 5]), true)?;
    let (parts, body) = response.await?.into_parts();
    Ok((http::Response::from_parts(parts, ()), body.is_end_stream()))
}

#[tokio::test]
async fn deadlines_and_refusals_are_told_in_the_words_of_grpc() -> Outcome {
    let mut scene = Scene::set().await;
    let (response, ended) = raw(scene.port, "/pkg.Echo/Never", "300m").await?;
    assert_eq!((response.status().as_u16(), ended), (200, true), "trailers only: {response:?}");
    assert_eq!(response.headers()["grpc-status"], "4", "the caller's deadline: {response:?}");
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert!(response.headers().contains_key("x-request-id"));
    let over = tokio::time::timeout(Duration::from_secs(5), scene.overs.recv()).await?;
    assert_eq!(over, Some("never"), "the program need not go on");
    let (response, ended) = raw(scene.port, "/pkg.Echo/Secret", "").await?;
    assert_eq!((response.headers()["grpc-status"].to_str()?, ended), ("7", true), "{response:?}");
    let log = scene.web.access_log().await;
    assert!(log.iter().any(|line| line["reason"] == "upstream_timeout" && line["status"] == 504), "{log:#?}");

    let channel = scene.channel().await;
    let denied = call(&channel, "/pkg.Echo/Secret", Request::new(Bytes::new())).await.expect_err("no rule");
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains("403") && denied.message().contains("request id"), "{denied:?}");

    scene.mesh.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: quick, namespace: shop }\nspec:\n  \
         parentRefs: [{ kind: Service, name: echo, namespace: shop }]\n  \
         rules: [{ timeouts: { request: 300ms }, backendRefs: [{ name: echo, port: 50051 }] }]\n",
    );
    let late = call(&channel, "/pkg.Echo/Never", Request::new(Bytes::new())).await.expect_err("the route's time ends");
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    let answer = call(&channel, "/pkg.Echo/Unary", Request::new(Bytes::from_static(b"quick"))).await?;
    assert_eq!(answer.into_inner(), "quick", "on the same connection");

    let mut endless = client(&channel)
        .await?
        .server_streaming(Request::new(Bytes::new()), path("/pkg.Echo/Endless"), Plain)
        .await?
        .into_inner();
    let cut = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Err(cut) = endless.message().await {
                return cut;
            }
        }
    });
    assert_eq!(cut.await?.code(), Code::Cancelled, "the time is for the whole response");

    scene.echo.process.kill();
    let gone = call(&channel, "/pkg.Echo/Unary", Request::new(Bytes::new())).await.expect_err("nobody is there");
    assert_eq!(gone.code(), Code::Unavailable, "{gone:?}");
    scene.tasks.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_when_an_agent_leaves_under_load() -> Outcome {
    let mut tasks = JoinSet::new();
    let (program, _overs) = program(&mut tasks).await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let backing = || AgentOptions { services: vec![format!("shop/echo:50051/grpc={program}")], ..AgentOptions::default() };
    let mut first = mesh.agent_of("shop/echo", "echo-1", backing()).await;
    let second = mesh.agent_of("shop/echo", "echo-2", backing()).await;
    let port = free_port();
    let upstreams = vec![format!("{port}=shop/echo:50051")];
    let _web = mesh.agent("shop/web", AgentOptions { upstreams, ..AgentOptions::default() }).await;
    mesh.apply(&allow("echo", "shop/echo", "[shop/web]", "[POST]", "[/pkg.Echo/Unary, /pkg.Echo/Chat]"));
    let channel = connect(SocketAddr::from(([127, 0, 0, 1], port))).await;

    // Streams that are open when it is told to go end in order, by their callers.
    let (send, receive) = channel_of(1);
    let request = Request::new(ReceiverStream::new(receive));
    let mut chat = client(&channel).await?.streaming(request, path("/pkg.Echo/Chat"), Plain).await?.into_inner();
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (channel, stop, served) = (channel.clone(), stop.clone(), served.clone());
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                call(&channel, "/pkg.Echo/Unary", Request::new(Bytes::from_static(&[1; 2000]))).await?;
                served.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Status>(())
        });
    }
    let reached = async |more: usize| {
        let target = served.load(Ordering::Relaxed) + more;
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while served.load(Ordering::Relaxed) < target {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect("calls are served");
    };
    reached(200).await;
    first.process.signal("TERM");
    first.process.wait_for("draining");
    reached(200).await;
    for number in 0..5_u8 {
        send.send(Bytes::from(vec![number; 10])).await?;
        assert_eq!(chat.message().await?.expect("an answer"), vec![number; 10], "it goes on while the agent leaves");
    }
    drop(send);
    assert_eq!(chat.message().await?, None);
    assert!(first.process.wait(Duration::from_secs(20)).success());
    reached(200).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = callers.join_next().await {
        ended?.map_err(|status| format!("a call failed: {status:?}"))?;
    }
    let lines =
        |dir: &std::path::Path| std::fs::read_to_string(dir.with_extension("access.log")).unwrap_or_default().lines().count();
    // The one that goes on writes its lines a moment later.
    until("lines of the second agent", || lines(&second.state_dir) > 10).await;
    let by_both = [&first.state_dir, &second.state_dir].map(|dir| lines(dir));
    assert!(by_both.iter().all(|lines| *lines > 10), "each had its part: {by_both:?}");
    Ok(())
}
