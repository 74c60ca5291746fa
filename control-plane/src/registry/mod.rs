//! What the mesh consists of: policies, agents, services. One writer, immutable snapshots.

mod anchors;
mod apply;
mod canary;
mod change;
mod membership;
mod mesh;
mod nearest;
mod revocations;
mod rollback;
mod routes;
mod service;
mod sessions;
mod shared;
mod world;

pub(crate) use anchors::{Start, bundle};
pub(crate) use canary::{Canary, CanaryOrder, CanaryState, Keeper, Phase};
pub(crate) use change::{Applied, Change, ChangeError, Request, TrustChange};
pub(crate) use mesh::Mesh;
pub(crate) use nearest::nearest;
pub(crate) use revocations::{Revocations, Revoked};
pub(crate) use rollback::RolledBack;
pub(crate) use routes::{Checked, Route, Routes};
pub(crate) use service::ServiceEntry;
pub(crate) use sessions::{Command, Concerned, Reach, Session, Sessions};
pub(crate) use shared::{ASK, ATTEMPTS, abreast, give_way, learn, tell};
pub(crate) use world::{Encoded, Policy, ServiceLabels, World, from_wire, targets_of};
