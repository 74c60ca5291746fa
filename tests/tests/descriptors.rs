//! An agent that may open few files, and far more connections than that.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use outrider_tests::{AgentOptions, Backend, Mesh, MeshOptions, Outcome, Process, allow, program, read_answer, through_proxy};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

/// Descriptors the agent may have.
const FEW: usize = 96;
/// Connections at each of its ports.
const MANY: usize = 1500;

#[tokio::test]
async fn an_agent_without_descriptors_serves_on_and_recovers() -> Outcome {
    // The flood's own connections need room in this process.
    outrider_runtime::descriptors::raise_limit();
    let backend = Backend::start().await;
    let mesh = Mesh::start(MeshOptions::default()).await;
    let services = vec![format!("shop/orders:80/http={}", backend.address)];
    let mut orders = mesh.agent("shop/orders", AgentOptions { services, ..AgentOptions::default() }).await;
    let mut web = mesh.agent("shop/web", AgentOptions::default()).await;
    mesh.apply(&allow("all", "shop/orders", "[shop/web]", "[GET]", "[\"/{rest=**}\"]"));
    for agent in [&mut orders, &mut web] {
        agent.process.signal("TERM");
        agent.process.wait(Duration::from_secs(20));
        agent.process = limited(agent.arguments());
        agent.ready().await;
        agent.connected().await;
    }
    let request = b"GET http://orders.shop/kept HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
    let mut kept = TcpStream::connect(web.outbound).await?;
    let mut rest = Vec::new();
    kept.write_all(request).await?;
    assert_eq!(read_answer(&mut kept, &mut rest).await?.status, 200);

    // More than it can take, at the ports of both; the kernel queues what it does not take.
    let mut flood = Vec::new();
    for address in [web.outbound, web.mesh, orders.mesh] {
        for _ in 0..MANY {
            flood.push(TcpStream::connect(address).await?);
        }
    }
    web.process.wait_for("accept failed");
    orders.process.wait_for("accept failed");
    for number in 0..50 {
        kept.write_all(request).await?;
        assert_eq!(
            read_answer(&mut kept, &mut rest).await?.status,
            200,
            "request {number} on the connection that was there before"
        );
    }
    drop(flood);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let fresh =
            tokio::time::timeout(Duration::from_secs(5), through_proxy(web.outbound, "GET", "http://orders.shop/new", "")).await;
        if matches!(fresh, Ok(Ok(answer)) if answer.status == 200) {
            break;
        }
        assert!(Instant::now() < deadline, "it did not recover:\n{}\n{}", web.process.log(), orders.process.log());
    }
    assert!(web.process.is_running() && orders.process.is_running());
    Ok(())
}

/// The agent, where `ulimit` allows it [`FEW`] descriptors.
fn limited(arguments: &[String]) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {FEW}; exec \"$0\" \"$@\"")]).arg(program("outrider-agent")).args(arguments);
    Process::start("agent with few descriptors", &mut command)
}

#[cfg(target_env = "gnu")]
#[tokio::test]
async fn an_agent_has_its_allocator_set_and_stays_the_process_that_was_started() -> Outcome {
    let mesh = Mesh::start(MeshOptions::default()).await;
    let agent = mesh.agent("shop/web", AgentOptions::default()).await;
    let environment = std::fs::read(format!("/proc/{}/environ", agent.process.id()))?;
    let environment = String::from_utf8_lossy(&environment);
    assert!(environment.split('\0').any(|word| word == "GLIBC_TUNABLES=glibc.malloc.tcache_count=64"), "{environment}");
    Ok(())
}
