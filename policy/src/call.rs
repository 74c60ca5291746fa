//! What is decided about: one call, described by what the agent knows for certain.

use std::fmt;
use std::net::IpAddr;

use crate::header::Headers;
use crate::{Protocol, SpiffeId};

/// One request, or one connection of an opaque protocol.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Who calls, proved by a certificate; `None` is an anonymous caller on a permissive port.
    pub source: Option<&'a SpiffeId>,
    /// From which address.
    pub source_ip: IpAddr,
    /// The port of the service that is called.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// The request, unless the protocol is opaque.
    pub http: Option<HttpCall<'a>>,
}

/// The parts of an HTTP request that rules can be about, in their canonical spelling.
#[derive(Clone, Copy)]
pub struct HttpCall<'a> {
    /// As sent; methods have a case.
    pub method: &'a str,
    /// The name of [`crate::host::canonical`], without port; empty if there is none.
    pub host: &'a str,
    /// The result of [`crate::path::canonical`], without query; empty if there is none, as for `CONNECT`.
    pub path: &'a str,
    /// What follows `?`.
    pub query: Option<&'a str>,
    /// All header lines.
    pub headers: &'a dyn Headers,
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, source_ip, port, protocol, http } = self;
        f.debug_struct("Call")
            .field("source", source)
            .field("source_ip", source_ip)
            .field("port", port)
            .field("protocol", protocol)
            .field("http", http)
            .finish()
    }
}

impl fmt::Debug for HttpCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, host, path, query, headers: _ } = self;
        f.debug_struct("HttpCall")
            .field("method", method)
            .field("host", host)
            .field("path", path)
            .field("query", query)
            .finish_non_exhaustive()
    }
}
