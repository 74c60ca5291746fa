//! The mesh of `outrider up`: one control plane, two services, two agents, in this process.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use outrider_agent::{Agent, Config, Settings, StartError, identity::IdentityError};
use outrider_control_plane::{ControlPlane, Environment, Raw};
use outrider_proto::v1::{CreateTokenRequest, ListAgentsRequest, StatusRequest};
use outrider_runtime::{Drain, Tasks};
use tokio::net::TcpListener;

use super::program;
use crate::{
    admin::{self, Admin},
    failure::Failure,
    known::Known,
    output::{Console, Tone},
};

/// How long an agent may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running mesh.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) control_plane: SocketAddr,
    pub(super) admin_socket: PathBuf,
    pub(super) admin: Admin,
    pub(super) web: SocketAddr,
    pub(super) web_agent: Agent,
    pub(super) orders_agent: Agent,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Mesh {
    /// Starts everything and waits until both agents are ready.
    pub(super) async fn start(state_dir: &Path, tasks: &Tasks, drain: &Drain) -> Result<Self, Failure> {
        let raw = Raw {
            state_dir: Some(state_dir.join("control-plane")),
            listen: Some(loopback().to_string()),
            health_listen: Some(loopback().to_string()),
            ..Raw::default()
        };
        let config = raw.resolve(&Environment::read()).map_err(|problems| Failure::Usage(problems.to_string()))?;
        let running = ControlPlane::start(config, tasks, drain)
            .await
            .map_err(|error| Failure::ControlPlane(outrider_runtime::tasks::chain(&error)))?;
        let mut admin = admin::connect(&running.admin_socket).await?;
        let status = admin.status(StatusRequest {}).await?.into_inner();
        let here = Known { address: running.address.to_string(), ..Known::of(&status) };
        let join = Join { state_dir, here, tasks, drain };

        let orders = program::orders(tasks, drain).await.map_err(Failure::Runtime)?;
        let orders_agent = join.agent(&mut admin, "shop/orders", orders).await?;
        // The program's port is part of what its agent backs, and the agent's proxy part of what the program is given.
        let listener = TcpListener::bind(loopback()).await.map_err(Failure::Runtime)?;
        let web_port = listener.local_addr().map_err(Failure::Runtime)?;
        let web_agent = join.agent(&mut admin, "shop/web", web_port).await?;
        let web = program::web(listener, web_agent.outbound, tasks, drain).map_err(Failure::Runtime)?;
        let current = tokio::time::timeout(PATIENCE, current(&mut admin)).await;
        current.map_err(|_| Failure::Tour("the agents do not follow the control plane".to_owned()))??;
        Ok(Self { control_plane: running.address, admin_socket: running.admin_socket, admin, web, web_agent, orders_agent })
    }

    /// Where everything is, and what to try.
    pub(super) fn describe(&self, console: &Console) -> Result<(), Failure> {
        let socket = self.admin_socket.display();
        let lines = [
            format!("control plane   {} (gRPC over mutual TLS)", self.control_plane),
            format!("admin socket    {socket}"),
            format!("shop/web        http://{} (calls shop/orders for whatever you ask)", self.web),
            format!(
                "  its agent     proxy http://{}, mesh {}, metrics http://{}/metrics",
                self.web_agent.outbound, self.web_agent.mesh, self.web_agent.health
            ),
            format!(
                "shop/orders     behind its agent: mesh {}, metrics http://{}/metrics",
                self.orders_agent.mesh, self.orders_agent.health
            ),
        ];
        console.line(&console.paint(Tone::Good, "The mesh stays up until Ctrl-C."))?;
        for line in lines {
            console.line(&format!("  {line}"))?;
        }
        console.line("\nTry, in another terminal:")?;
        console.line(&format!("  export OUTRIDER_ADMIN_SOCKET={socket}"))?;
        for example in [
            format!("curl -i http://{}/v1/orders/7", self.web),
            format!("curl -i -X DELETE http://{}/v1/orders/7", self.web),
            "outrider get policies".to_owned(),
            "outrider get decisions".to_owned(),
            "outrider explain --from shop/web --to shop/orders DELETE /v1/orders/7".to_owned(),
            "outrider certs rotate".to_owned(),
            "outrider run --service shop/web2 -- curl -si http://orders.shop/v1/orders/7".to_owned(),
        ] {
            console.line(&format!("  {example}"))?;
        }
        Ok(())
    }
}

/// Waits until both agents have the mesh of now in force: what they kept from an earlier time names addresses of that time.
async fn current(admin: &mut Admin) -> Result<(), Failure> {
    let revision = admin.status(StatusRequest {}).await?.into_inner().revision;
    loop {
        let agents = admin.list_agents(ListAgentsRequest {}).await?.into_inner().agents;
        let follows = |account: &str| {
            let own = agents.iter().filter(|agent| agent.connected && agent.identity.ends_with(account));
            own.map(|agent| agent.revision).any(|in_force| in_force >= revision)
        };
        if follows("/ns/shop/sa/web") && follows("/ns/shop/sa/orders") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

struct Join<'a> {
    state_dir: &'a Path,
    here: Known,
    tasks: &'a Tasks,
    drain: &'a Drain,
}

impl Join<'_> {
    /// An agent that backs `service`; joins with a token of its own if it has no certificate from an earlier time.
    async fn agent(&self, admin: &mut Admin, service: &str, program: SocketAddr) -> Result<Agent, Failure> {
        let state_dir = self.state_dir(service);
        self.here.forget_others(&state_dir)?;
        let agent = match Agent::start(self.config(service, program, None)?, self.tasks, self.drain).await {
            Err(StartError::Identity(IdentityError::NoToken)) => {
                let request = CreateTokenRequest {
                    identity: service.to_owned(),
                    services: vec![service.to_owned()],
                    ttl_seconds: 60,
                    caller_only: false,
                };
                let token = admin.create_token(request).await?.into_inner().token;
                Agent::start(self.config(service, program, Some(token))?, self.tasks, self.drain).await
            }
            outcome => outcome,
        }?;
        self.here.keep(&state_dir)?;
        let readiness = agent.readiness.clone();
        let waited = tokio::time::timeout(PATIENCE, readiness.ready()).await;
        waited.map_err(|_| {
            let missing = readiness.missing().join(", ");
            Failure::Tour(format!("the agent of {service} still waits for {missing} after {} s", PATIENCE.as_secs()))
        })?;
        Ok(agent)
    }

    fn state_dir(&self, service: &str) -> PathBuf {
        self.state_dir.join("agents").join(service)
    }

    fn config(&self, service: &str, program: SocketAddr, token: Option<String>) -> Result<Config, Failure> {
        let state_dir = self.state_dir(service);
        let settings = Settings {
            control_plane: Some(self.here.address.clone()),
            token,
            identity: Some(service.to_owned()),
            service: vec![format!("{service}:80/http={program}")],
            outbound: Some(loopback()),
            mesh: Some(loopback()),
            health: Some(loopback()),
            access_log: Some(state_dir.join("access.log").display().to_string()),
            state_dir: Some(state_dir),
            workers: Some(1),
            // A tour shows every call; a production mesh reports a sample.
            report_allows: Some(1.0),
            drain_seconds: Some(5),
            ..Settings::default()
        };
        Config::try_from(settings).map_err(|problems| Failure::Usage(problems.to_string()))
    }
}
