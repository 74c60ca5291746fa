//! `outrider run`: an agent beside any program, for as long as the program runs.

use std::{net::SocketAddr, os::unix::process::ExitStatusExt as _, path::PathBuf, process::ExitStatus};

use outrider_agent::{Agent, Config, Settings, StartError, identity::IdentityError};
use outrider_policy::{Protocol, ServiceName};
use outrider_proto::v1::CreateTokenRequest;
use outrider_runtime::{Drain, Tasks, drain, telemetry};
use tokio::process::{Child, Command};

use crate::{
    args::Socket,
    failure::{Exit, Failure},
    output::Console,
};

/// How long the join token of a program started by hand lives, seconds.
const TOKEN_SECONDS: u32 = 60;

/// Start a program with an agent beside it
///
/// The agent proves that the program is SERVICE, serves its ports to the mesh, and offers it the mesh as an HTTP proxy
/// (`HTTP_PROXY`). It ends when the program ends, with the program's exit code.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  outrider run --service shop/files --port 8080 -- nginx -g 'daemon off;'
  outrider run --service shop/web -- curl http://files.shop/
  outrider run --service shop/db --port 5432/tcp -- postgres -D /srv/db
  outrider run --service shop/web --upstream 5432=shop/db -- psql -h 127.0.0.1
  outrider run --control-plane mesh.example:15110 --token orj1.… --service shop/web -- ./web")]
pub(crate) struct Run {
    /// Service that the program is, NAMESPACE/NAME; its identity is the service account of the same name
    #[arg(long, value_name = "SERVICE")]
    service: ServiceName,
    /// Port that the program listens on, and what it speaks there [default protocol: http]; may be repeated
    #[arg(long, value_name = "PORT[/tcp|http|http2|grpc]", value_parser = port)]
    port: Vec<Port>,
    /// Local port that leads to a service, [HOST:]PORT=NAMESPACE/NAME[:PORT]; may be repeated
    #[arg(long, value_name = "LISTEN=SERVICE")]
    upstream: Vec<String>,
    /// Control plane to join [default: the one on this machine]
    #[arg(long, env = "OUTRIDER_CONTROL_PLANE", value_name = "HOST:PORT")]
    control_plane: Option<String>,
    /// One-time join token [default: made through the admin socket of the control plane on this machine]
    #[arg(long, env = "OUTRIDER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Where other agents connect [default: any free port on loopback]
    #[arg(long, value_name = "ADDRESS")]
    mesh: Option<SocketAddr>,
    /// How other agents reach that address, HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Private directory of this agent [default: below $XDG_STATE_HOME/outrider/agents]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Access log: a file, `stdout` or `off` [default: access.log in the agent's directory]
    #[arg(long, value_name = "TARGET")]
    access_log: Option<String>,
    /// Log filter of the agent
    #[arg(long, env = "OUTRIDER_LOG", default_value = "warn", value_name = "FILTER")]
    log: String,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Port {
    number: u16,
    protocol: Protocol,
}

fn port(text: &str) -> Result<Port, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "http"));
    let number = number.parse().ok().filter(|number| *number > 0).ok_or("the port is a number from 1 to 65535")?;
    let protocol = protocol.parse().map_err(|_| "the protocol is one of `tcp`, `http`, `http2`, `grpc`")?;
    Ok(Port { number, protocol })
}

impl Run {
    /// Runs the verb: the program's exit code becomes ours.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        telemetry::init(telemetry::Format::Text, &self.log).map_err(Failure::Usage)?;
        let (tasks, drain) = (Tasks::new(), Drain::new());
        let agent = self.start_agent(socket, &tasks, &drain).await?;
        let ready = agent.readiness.clone();
        tokio::select! {
            () = ready.ready() => {}
            failed = tasks.failure() => return Err(Failure::Agent(failed.to_string())),
            _ = drain::signal() => return Err(Failure::Agent(format!("stopped while waiting for {}", ready.missing().join(", ")))),
        }
        let identity = agent.svids.latest().map(|svid| svid.leaf.id.to_string()).unwrap_or_default();
        console.remark(&format!("outrider: {identity} is in the mesh (mesh {}, proxy http://{})", agent.mesh, agent.outbound));
        let mut program = self.start_program(agent.outbound, &identity)?;
        let status = tokio::select! {
            status = wait(&mut program) => status.map_err(Failure::Runtime)?,
            failed = tasks.failure() => {
                // Without its agent the program is neither protected nor reachable.
                let _ = program.kill().await;
                return Err(Failure::Agent(failed.to_string()));
            }
        };
        agent.stop().await;
        Ok(exit(status))
    }

    async fn start_agent(&self, socket: &Socket, tasks: &Tasks, drain: &Drain) -> Result<Agent, Failure> {
        let named = self.control_plane.clone().zip(self.token.clone());
        if let Some((control_plane, token)) = named {
            return Ok(Agent::start(self.config(socket, control_plane, Some(token))?, tasks, drain).await?);
        }
        // A certificate from an earlier run makes a token needless; where to connect only the control plane can say.
        let mut admin = socket.connect().await?;
        let status = admin.status(outrider_proto::v1::StatusRequest {}).await?.into_inner();
        let control_plane = self.control_plane.clone().unwrap_or(status.address);
        let config = self.config(socket, control_plane.clone(), self.token.clone())?;
        match Agent::start(config, tasks, drain).await {
            Err(StartError::Identity(IdentityError::NoToken)) => {}
            outcome => return Ok(outcome?),
        }
        let services = if self.port.is_empty() { Vec::new() } else { vec![self.service.to_string()] };
        let caller_only = services.is_empty();
        let request =
            CreateTokenRequest { identity: self.service.to_string(), services, ttl_seconds: TOKEN_SECONDS, caller_only };
        let token = admin.create_token(request).await?.into_inner().token;
        Ok(Agent::start(self.config(socket, control_plane, Some(token))?, tasks, drain).await?)
    }

    fn config(&self, socket: &Socket, control_plane: String, token: Option<String>) -> Result<Config, Failure> {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let state_dir = match &self.state_dir {
            Some(dir) => dir.clone(),
            None => socket.state_home()?.join("agents").join(self.service.namespace()).join(self.service.name()),
        };
        let access_log = match &self.access_log {
            Some(target) => target.clone(),
            None => state_dir.join("access.log").display().to_string(),
        };
        let service =
            self.port.iter().map(|port| format!("{}:{}/{}", self.service, port.number, port.protocol.as_str())).collect();
        let settings = Settings {
            control_plane: Some(control_plane),
            token,
            identity: Some(self.service.to_string()),
            service,
            upstream: self.upstream.clone(),
            outbound: Some(loopback),
            mesh: Some(self.mesh.unwrap_or(loopback)),
            advertise: self.advertise.clone(),
            health: Some(loopback),
            state_dir: Some(state_dir),
            workers: Some(1),
            access_log: Some(access_log),
            drain_seconds: Some(5),
            ..Settings::default()
        };
        Config::try_from(settings).map_err(|problems| Failure::Usage(problems.to_string()))
    }

    fn start_program(&self, proxy: SocketAddr, identity: &str) -> Result<Child, Failure> {
        let (program, arguments) = self.command.split_first().ok_or_else(|| Failure::Usage("no command".to_owned()))?;
        let proxy = format!("http://{proxy}");
        let local = "localhost,127.0.0.1,::1";
        Command::new(program)
            .args(arguments)
            .envs([("HTTP_PROXY", proxy.as_str()), ("http_proxy", &proxy), ("NO_PROXY", local), ("no_proxy", local)])
            .env("OUTRIDER_IDENTITY", identity)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::Usage(format!("cannot start `{program}`: {error}")))
    }
}

/// Waits for the program. A terminal's Ctrl-C reaches it by itself; SIGTERM to us is passed on by ending it.
async fn wait(program: &mut Child) -> std::io::Result<ExitStatus> {
    tokio::select! {
        status = program.wait() => return status,
        _ = drain::signal() => {}
    }
    if let Some(pid) = program.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    program.wait().await
}

fn exit(status: ExitStatus) -> Exit {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).and_then(|code| u8::try_from(code).ok());
    Exit::Program(code.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_speak_http_unless_said_otherwise() {
        assert_eq!(port("8080"), Ok(Port { number: 8080, protocol: Protocol::Http }));
        assert_eq!(port("5432/tcp"), Ok(Port { number: 5432, protocol: Protocol::Tcp }));
        for wrong in ["", "0", "x", "80/smtp", "70000"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_programs_end_is_ours() {
        assert_eq!(exit(ExitStatus::from_raw(3 << 8)), Exit::Program(3));
        assert_eq!(exit(ExitStatus::from_raw(15)), Exit::Program(143));
    }
}
