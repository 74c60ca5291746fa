//! `outrider run`: an agent beside any program, for as long as the program runs.

use std::{net::SocketAddr, os::unix::process::ExitStatusExt as _, path::PathBuf, process::ExitStatus};

use outrider_agent::{Agent, Config, Settings, StartError, identity::IdentityError};
use outrider_policy::{Protocol, ServiceName};
use outrider_proto::v1::{CreateTokenRequest, StatusRequest, StatusResponse};
use outrider_runtime::{Drain, Tasks, drain, telemetry};
use tokio::process::{Child, Command};

use crate::{
    admin::Admin,
    args::Socket,
    failure::{Exit, Failure},
    known::Known,
    output::Console,
    tied::{Signals, supervise},
};

/// How long the join token of a program started by hand lives, seconds.
const TOKEN_SECONDS: u32 = 60;

/// Start a program with an agent beside it
///
/// The agent proves that the program is SERVICE, serves its ports to the mesh, and offers it the mesh as an HTTP proxy
/// (`HTTP_PROXY`). It ends when the program ends, with the program's exit code; signals are passed on, and a program that has
/// not ended 30 s after TERM, or at a second TERM, is killed. Once it has joined, it starts without the control plane too, for
/// as long as its certificate lasts.
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
    /// Label of the program, for the `selector` of policies; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Local port that leads to a service, [HOST:]PORT=NAMESPACE/NAME[:PORT]; may be repeated
    #[arg(long, value_name = "LISTEN=SERVICE")]
    upstream: Vec<String>,
    /// Control plane to join [default: the one on this machine, else the one joined last]
    #[arg(long, env = "OUTRIDER_CONTROL_PLANE", value_name = "HOST:PORT[,…]")]
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
    /// Private directory of this agent [default: below $XDG_STATE_HOME/outrider]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Access log: a file, `stdout` or `off` [default: access.log in the agent's directory]
    #[arg(long, value_name = "TARGET")]
    access_log: Option<String>,
    /// Share of allowed requests that are reported to the control plane, 0 to 1
    #[arg(long, env = "OUTRIDER_REPORT_ALLOWS", default_value_t = 1.0, value_name = "SHARE")]
    report_allows: f64,
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
        let signals = Signals::new().map_err(Failure::Runtime)?;
        let mut program = self.start_program(&agent, &identity)?;
        // Only now: programs that use select(2) do not expect many descriptors.
        outrider_runtime::descriptors::raise_limit();
        let status = tokio::select! {
            status = supervise(&mut program, signals) => status.map_err(Failure::Runtime)?,
            failed = tasks.failure() => {
                // Without its agent the program is neither protected nor reachable.
                let _ = program.kill().await;
                return Err(Failure::Agent(failed.to_string()));
            }
        };
        agent.stop().await;
        Ok(exit(status))
    }

    /// Starts the agent. What it has from before is enough: the control plane is needed for the first start only.
    async fn start_agent(&self, socket: &Socket, tasks: &Tasks, drain: &Drain) -> Result<Agent, Failure> {
        let state_dir = self.state_dir(socket)?;
        let elsewhere = || Known::read(&state_dir).filter(Known::is_elsewhere).map(|known| known.address);
        if let Some(address) = &self.control_plane.clone().or_else(elsewhere) {
            match Agent::start(self.config(socket, address.clone(), self.token.clone())?, tasks, drain).await {
                Err(StartError::Identity(IdentityError::NoToken)) => {}
                outcome => {
                    let agent = outcome?;
                    Known::at(address).keep(&state_dir)?;
                    return Ok(agent);
                }
            }
        }
        let (mut admin, here) = match self.ask(socket).await {
            Ok((admin, status)) => (admin, Known::of(&status)),
            Err(failure) => match Known::read(&state_dir).filter(|_| self.control_plane.is_none()) {
                Some(kept) => {
                    let config = self.config(socket, kept.address, self.token.clone())?;
                    return match Agent::start(config, tasks, drain).await {
                        Err(StartError::Identity(IdentityError::NoToken)) => Err(failure),
                        outcome => Ok(outcome?),
                    };
                }
                None => return Err(failure),
            },
        };
        here.forget_others(&state_dir)?;
        let address = self.control_plane.clone().unwrap_or_else(|| here.address.clone());
        let agent = match Agent::start(self.config(socket, address.clone(), self.token.clone())?, tasks, drain).await {
            Err(StartError::Identity(IdentityError::NoToken)) => {
                let token = self.make_token(&mut admin).await?;
                Agent::start(self.config(socket, address.clone(), Some(token))?, tasks, drain).await?
            }
            outcome => outcome?,
        };
        Known { address, ..here }.keep(&state_dir)?;
        Ok(agent)
    }

    /// Asks the control plane on this machine where it is.
    async fn ask(&self, socket: &Socket) -> Result<(Admin, StatusResponse), Failure> {
        let mut admin = socket.connect().await?;
        let status = admin.status(StatusRequest {}).await?.into_inner();
        Ok((admin, status))
    }

    async fn make_token(&self, admin: &mut Admin) -> Result<String, Failure> {
        let services = if self.port.is_empty() { Vec::new() } else { vec![self.service.to_string()] };
        let caller_only = services.is_empty();
        let request =
            CreateTokenRequest { identity: self.service.to_string(), services, ttl_seconds: TOKEN_SECONDS, caller_only };
        Ok(admin.create_token(request).await?.into_inner().token)
    }

    /// A program that only calls has a directory of its own: its certificate is not one of a program that backs the service,
    /// and both may run at once.
    fn state_dir(&self, socket: &Socket) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.state_dir {
            return Ok(dir.clone());
        }
        let role = if self.port.is_empty() { "callers" } else { "agents" };
        Ok(socket.state_home()?.join(role).join(self.service.namespace()).join(self.service.name()))
    }

    fn config(&self, socket: &Socket, control_plane: String, token: Option<String>) -> Result<Config, Failure> {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let state_dir = self.state_dir(socket)?;
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
            label: self.label.clone(),
            upstream: self.upstream.clone(),
            outbound: Some(loopback),
            mesh: Some(self.mesh.unwrap_or(loopback)),
            advertise: self.advertise.clone(),
            health: Some(loopback),
            state_dir: Some(state_dir),
            workers: Some(1),
            access_log: Some(access_log),
            report_allows: Some(self.report_allows),
            drain_seconds: Some(5),
            ..Settings::default()
        };
        Config::try_from(settings).map_err(|problems| Failure::Usage(problems.to_string()))
    }

    fn start_program(&self, agent: &Agent, identity: &str) -> Result<Child, Failure> {
        let program = self.command.first().ok_or_else(|| Failure::Usage("no command".to_owned()))?;
        let proxy = format!("http://{}", agent.outbound);
        let local = "localhost,127.0.0.1,::1";
        // We start ourselves, and that becomes the program: see `tied`.
        Command::new("/proc/self/exe")
            .args(["tied", &std::process::id().to_string(), "--"])
            .args(&self.command)
            .envs([("HTTP_PROXY", proxy.as_str()), ("http_proxy", &proxy), ("NO_PROXY", local), ("no_proxy", local)])
            .env("OUTRIDER_IDENTITY", identity)
            .envs(agent.workload_socket.as_ref().map(|path| ("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", path.display()))))
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::Usage(format!("cannot start `{program}`: {error}")))
    }
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
