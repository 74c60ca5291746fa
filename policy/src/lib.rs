//! The words of Outrider's policy, and what they mean.
//!
//! A pure crate: no I/O, no clock, no runtime. It reads policies ([`manifest`]), compiles those that apply to one port of a
//! service ([`compile()`]), decides calls ([`Compiled::decide`]) and says why ([`Compiled::explain`]). Identities, service
//! names, paths and hosts have one canonical spelling each, which agent, control plane and command line share.

pub mod analyse;
pub mod call;
pub mod compile;
pub mod decision;
pub mod described;
mod evaluate;
pub mod explain;
pub mod header;
pub mod host;
pub mod identity;
pub mod istio;
pub mod limits;
pub mod manifest;
pub mod method;
pub mod names;
pub mod path;
pub mod path_pattern;
pub mod pattern;
pub mod protocol;
pub mod query;
pub mod reserved;
pub mod resource;
pub mod route;
pub mod rule;
pub mod svid;
pub mod target;
pub mod testcase;
pub mod when;

pub use analyse::{Ground, Unknown, analyse};
pub use call::{Call, HttpCall};
pub use compile::{Compiled, Problem, compile};
pub use decision::{Audited, Decision, Effect, RuleId};
pub use described::{Answer, DescribedCall};
pub use explain::{Explanation, NearMiss};
pub use header::{Headers, NoHeaders};
pub use identity::{SpiffeId, TrustDomain};
pub use limits::{LimitKey, LimitUnit, Limits};
pub use manifest::{Diagnostic, Manifest, Severity};
pub use method::is_method;
pub use names::{Label, ServiceAccount, ServiceName};
pub use protocol::Protocol;
pub use reserved::{Reserved, reserved};
pub use resource::{MtlsMode, ROOT_NAMESPACE, ServicePolicy};
pub use rule::Action;
pub use target::{StoredPolicy, Target};
