//! `outrider login`: from a one-time token to a context.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outrider_agent::identity::SigningRequest;
use outrider_proto::v1::{LoginRequest, operator_client::OperatorClient};

use crate::{
    args::Socket,
    contexts::Contexts,
    failure::{Exit, Failure},
    output::{Console, printable},
    remote,
};

/// Log in to a control plane on another machine
///
/// The key is made here and stays here, in contexts.yaml below $XDG_CONFIG_HOME/outrider (mode 0600). From then on the other verbs go
/// to that control plane, unless --context or --admin-socket names another.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  outrider login --control-plane mesh.example:15180 --token orl1.…")]
pub(crate) struct Login {
    /// Operators' port of the control plane
    #[arg(long, value_name = "HOST:PORT")]
    control_plane: String,
    /// One-time login token, as printed by `outrider operator create`
    #[arg(long, env = "OUTRIDER_LOGIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: String,
}

impl Login {
    /// Runs the verb.
    pub(crate) async fn run(self, socket: &Socket, console: &Console) -> Result<Exit, Failure> {
        let shape = || Failure::Usage("not a login token: copy the whole line that `outrider operator create` prints".to_owned());
        let pin = pin(self.token.trim()).ok_or_else(shape)?;
        let path = Contexts::path()?;
        let mut contexts = Contexts::read(&path)?;
        let request = SigningRequest::new().map_err(|error| Failure::Agent(error.to_string()))?;
        let channel = remote::dial(&self.control_plane, remote::pinned(pin)).await?;
        let call = LoginRequest { token: self.token.trim().to_owned(), csr: request.csr.clone() };
        let answer = OperatorClient::new(channel).login(call).await?.into_inner();
        let context = remote::context(&self.control_plane, &request, answer);
        let name = socket.context().map_or_else(|| default_name(&context.identity, &self.control_plane), str::to_owned);
        console.remark(&printable(&format!("logged in as {} ({}); context `{name}` is in use", context.identity, context.role)));
        contexts.contexts.insert(name.clone(), context);
        contexts.current = Some(name);
        contexts.write(&path)?;
        Ok(Exit::Done)
    }
}

/// `ann@mesh.example`.
fn default_name(identity: &str, control_plane: &str) -> String {
    let operator = identity.rsplit('/').next().unwrap_or("operator");
    let host = control_plane.rsplit_once(':').map_or(control_plane, |(host, _)| host);
    format!("{operator}@{host}")
}

/// SHA-256 of the key of the root that the control plane must show.
fn pin(token: &str) -> Option<[u8; 32]> {
    let mut parts = token.split('.');
    let (Some("orl1"), Some(_), Some(pin), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else { return None };
    URL_SAFE_NO_PAD.decode(pin).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_no_login_token_is_known_before_anybody_is_asked() {
        let part = URL_SAFE_NO_PAD.encode([7; 32]);
        assert_eq!(pin(&format!("orl1.{part}.{part}")), Some([7; 32]));
        for bad in ["", "orl1", &format!("orj1.{part}.{part}"), &format!("orl1.{part}.{part}.x"), &format!("orl1.{part}.AA")] {
            assert!(pin(bad).is_none(), "{bad}");
        }
        assert_eq!(default_name("spiffe://mesh.internal/operator/ann", "mesh.example:15180"), "ann@mesh.example");
    }
}
