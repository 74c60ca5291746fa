//! An agent is replaced by another while calls go on: nobody notices.

use std::{
    net::SocketAddr,
    os::unix::net::UnixDatagram,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use outrider_tests::{AgentOptions, AgentProcess, Backend, Mesh, MeshOptions, Outcome, Process, allow, read_answer, until};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

/// Calls one after another, on connections that are kept as long as answers allow it, until it is told to stop.
async fn calls(proxy: SocketAddr, path: &'static str, stop: Arc<AtomicBool>, answered: Arc<AtomicUsize>) -> Result<(), String> {
    let request = format!("GET http://orders.shop{path} HTTP/1.1\r\nhost: orders.shop\r\n\r\n");
    while !stop.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(proxy).await.map_err(|error| format!("connect: {error}"))?;
        let mut rest = Vec::new();
        // A program opens a new connection now and then all by itself.
        for number in 0..50 {
            stream.write_all(request.as_bytes()).await.map_err(|error| format!("request {number}: {error}"))?;
            let answer = read_answer(&mut stream, &mut rest).await.map_err(|error| format!("answer {number}: {error}"))?;
            if answer.status != 200 {
                return Err(format!("{}: {}", answer.status, answer.body_text()));
            }
            answered.fetch_add(1, Ordering::Relaxed);
            if answer.field("connection") == Some("close") || stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    Ok(())
}

async fn shop() -> (Mesh, Backend, AgentProcess, AgentProcess) {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    let web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    (mesh, backend, orders, web)
}

#[tokio::test]
async fn agents_are_replaced_five_times_under_load_and_no_request_fails() -> Outcome {
    let (mesh, _backend, mut orders, mut web) = shop().await;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut load = JoinSet::new();
    for number in 0..8 {
        let path = if number == 0 { "/slow" } else { "/quick" };
        load.spawn(calls(web.outbound, path, stop.clone(), answered.clone()));
    }
    let mut before: Vec<Process> = Vec::new();
    for round in 0..5 {
        let had = answered.load(Ordering::Relaxed);
        let agent = if round % 2 == 0 { &mut orders } else { &mut web };
        before.push(agent.replace());
        agent.process.wait_for("listening");
        agent.ready().await;
        agent.connected().await;
        until("more answers", || answered.load(Ordering::Relaxed) > had + 50).await;
        if let Some(failed) = load.try_join_next() {
            failed??;
        }
    }
    for process in &mut before {
        // The programs behind the agents run in this thread too: it must not sleep.
        let deadline = Instant::now() + Duration::from_secs(30);
        while process.is_running() {
            assert!(Instant::now() < deadline, "it does not leave:\n{}", process.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(process.wait(Duration::from_secs(20)).success(), "{}", process.log());
    }
    // What the successors are told is in force.
    mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    stop.store(true, Ordering::Relaxed);
    while let Some(outcome) = load.join_next().await {
        outcome??;
    }
    Ok(())
}

#[tokio::test]
async fn a_successor_that_cannot_serve_changes_nothing() -> Outcome {
    let (_mesh, _backend, orders, mut web) = shop().await;
    let call = || async {
        outrider_tests::through_proxy(web.outbound, "GET", "http://orders.shop/quick", "").await.map(|answer| answer.status)
    };
    assert_eq!(call().await?, 200);
    // The snapshot is gone: a successor would have nothing to serve by.
    let snapshot = web.state_dir.join("snapshot");
    std::fs::rename(&snapshot, web.state_dir.join("aside"))?;
    let mut successor = web.start_successor();
    assert!(!successor.wait(Duration::from_secs(20)).success());
    until("the reason", || successor.log().contains("nothing to serve by")).await;
    assert_eq!(call().await?, 200);
    std::fs::rename(web.state_dir.join("aside"), &snapshot)?;

    // One that is killed while it starts, and one that speaks another language.
    let mut stream = std::os::unix::net::UnixStream::connect(web.state_dir.join("handover.sock"))?;
    std::io::Write::write_all(&mut stream, &[7; 256])?;
    drop(stream);
    web.process.wait_for("did not come to serve");
    assert_eq!(call().await?, 200);

    // Without the flag a second agent is refused as ever.
    let mut second = web.start_again();
    assert!(!second.wait(Duration::from_secs(20)).success());
    until("the reason", || second.log().contains("in use by another agent")).await;
    assert_eq!(call().await?, 200);
    assert!(web.process.is_running());
    drop(orders);
    Ok(())
}

#[tokio::test]
async fn a_signal_makes_an_agent_start_its_successor_and_the_service_manager_is_told() -> Outcome {
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let told = mesh.dir.path().join("notify");
    let socket = UnixDatagram::bind(&told)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut orders = mesh.agent_told("shop/orders", AgentOptions { services, ..AgentOptions::default() }, &told).await;
    let hear = || -> std::io::Result<String> {
        let mut bytes = [0; 1024];
        let length = socket.recv(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    let first = hear()?;
    assert!(first.contains("READY=1") && first.contains(&format!("MAINPID={}", orders.process.id())), "{first}");
    orders.process.signal("USR2");
    let second = hear()?;
    assert!(second.contains("READY=1") && !second.contains(&format!("MAINPID={}\n", orders.process.id())), "{second}");
    assert!(orders.process.wait(Duration::from_secs(20)).success(), "{}", orders.process.log());
    orders.ready().await;
    let successor = second.lines().find_map(|line| line.strip_prefix("MAINPID=")).expect("a process").to_owned();
    let status = std::process::Command::new("kill").args(["-TERM", &successor]).status()?;
    assert!(status.success());
    assert!(hear()?.contains("STOPPING=1"));
    Ok(())
}
