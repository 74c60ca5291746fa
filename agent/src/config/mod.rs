//! What the agent is told: settings at its start, the control plane's view while it runs, and what it keeps on disk.

mod addresses;
mod channel;
mod sealed;
mod settings;
mod state_dir;
mod subscription;
mod telemetry_stream;
mod tracing;
mod view;

pub use addresses::Addresses;
pub use channel::{ControlPlane, ControlPlaneError};
pub use sealed::{SealError, SealedFile};
pub use settings::{BackedPort, Config, ConfigProblems, ExplicitUpstream, PlaintextPort, Settings};
pub use state_dir::{StateDir, StateDirError};
pub use subscription::{Subscription, SubscriptionError};
pub use telemetry_stream::{TelemetryError, send_reports};
pub use tracing::Tracing;
pub use view::{View, ViewError};
