//! HTTP as the agent understands it: strict codecs at the edges, one canonical request between them.

pub(crate) mod fields;
pub(crate) mod grpc;
pub mod h1;
pub mod h2;
mod heads;
mod host;
pub mod io;
mod limits;
pub mod message;
mod meter;
pub mod normalize;
pub mod preface;
mod seal;

pub use fields::Fields;
pub(crate) use fields::put_number;
pub use h1::{Reply, Service};
pub use host::HostName;
pub use io::{SharedIo, Transport};
pub use limits::{LimitProblem, Limits};
pub use message::{Again, Body, BodyError, Frame, Request, RequestHead, Response, Version};
pub use meter::Meter;
pub use seal::{meant_for, refused, seal};

pub(crate) use heads::{Heads, HeldHead};
pub(crate) use host::service_of;
pub(crate) use limits::{MOST_TRAILERS, TAKEN, TRAILER_BYTES};
