//! The wire between agents, control plane and operators: generated from `outrider/v1/*.proto`, which document it.

/// Version 1 of the wire.
#[expect(missing_docs, clippy::allow_attributes, reason = "generated; the .proto files carry the documentation of every message")]
pub mod v1 {
    tonic::include_proto!("outrider.v1");
}

/// The SPIFFE Workload API, which is not ours: `spiffe/workload.proto`.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    reason = "generated; the .proto file carries the documentation of every message"
)]
pub mod workload {
    tonic::include_proto!("_");
}

/// The encoded `FileDescriptorSet` of all messages, for reflection and tools.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/outrider.v1.fds"));
