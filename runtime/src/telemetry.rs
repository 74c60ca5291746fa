//! Logs: one line an event on standard error, for people or as JSON, and a panic is an event.

use std::{io::IsTerminal as _, str::FromStr};

use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Shape of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("unknown log format `{other}`: use `text` or `json`")),
        }
    }
}

/// Starts logging to standard error. A second call does nothing.
///
/// # Errors
/// When `filter` is not a list of directives like `info,outrider_agent=debug`.
pub fn init(format: Format, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log filter `{filter}`: {error}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    // NO_COLOR (no-color.org), and files that want none.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let started = match format {
        Format::Text => registry.with(layer.with_target(false)).try_init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            tracing::error!(
                location = panic.location().map(tracing::field::display),
                "{}",
                panic.payload_as_str().unwrap_or("panic")
            );
        }));
    }
    Ok(())
}
