//! Transparent capture: connections of programs that know nothing of the mesh, sent here by rules of the kernel.
//!
//! [`Rules`] are those rules, [`command`] prints, installs, checks and removes them, and the rest is what the agent does with
//! a connection that they redirected.

mod captured;
pub mod command;
mod egress;
mod nft;
mod redirected;
mod rules;
mod settings;

pub use captured::{Captured, Direction};
pub(crate) use captured::{listeners, serve};
pub use egress::Egress;
pub use nft::{Nft, NftError};
pub use redirected::Original;
pub use rules::{Ports, Rules};
pub use settings::{Capture, CaptureSettings, Directions};

/// Where captured connections of the own program arrive.
pub const OUTBOUND_PORT: u16 = 15102;
/// Where captured connections to the own program arrive.
pub const INBOUND_PORT: u16 = 15106;
/// Where captured questions for names arrive.
pub const DNS_PORT: u16 = 15153;
