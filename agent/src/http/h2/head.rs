//! The fields of a request's head, as HTTP/2 has them: checked once, and rid of what goes no further.

use super::{USUAL, is_connection_field};
use crate::{
    http::{Fields, normalize::is_identity_claim},
    refusal::{Reason, Refusal},
};

pub(super) fn malformed(detail: &str) -> Refusal {
    Refusal::new(Reason::Malformed, detail)
}

/// What the fields of a head say.
pub(super) struct HeadFields<'a> {
    /// Those that go on.
    pub(super) fields: Fields,
    pub(super) host: Option<&'a [u8]>,
    pub(super) length: Option<u64>,
}

impl<'a> HeadFields<'a> {
    pub(super) fn read(map: &'a http::HeaderMap) -> Result<Self, Refusal> {
        let mut fields = Fields::with_capacity(USUAL);
        let mut length = None;
        let mut host = None;
        let mut cookies = Vec::new();
        for (name, value) in map {
            let (name, value) = (name.as_str(), value.as_bytes());
            if value.trim_ascii().len() != value.len() {
                return Err(malformed("field value with outer white space"));
            }
            if name.contains('_') {
                return Err(malformed("field name with an underscore"));
            }
            match name {
                "host" if host.replace(value).is_some() => {
                    return Err(Refusal::new(Reason::BadHost, "more than one host field"));
                }
                "host" => {}
                "content-length" => {
                    let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                    let parsed = text
                        .and_then(|text| text.parse::<u64>().ok())
                        .ok_or_else(|| malformed("content-length is not a number"))?;
                    if length.replace(parsed).is_some() {
                        return Err(malformed("more than one content-length"));
                    }
                }
                // Browsers send a line for each cookie; programs that speak HTTP/1.1 know one (RFC 9113 section 8.2.3).
                "cookie" => {
                    if !cookies.is_empty() {
                        cookies.extend_from_slice(b"; ");
                    }
                    cookies.extend_from_slice(value);
                }
                "trailer" => {}
                "te" if value == b"trailers" => {}
                "expect" if value.eq_ignore_ascii_case(b"100-continue") => {}
                "expect" => return Err(Refusal::new(Reason::UnknownExpectation, "unknown expectation")),
                _ if is_connection_field(name) => return Err(malformed("connection field in HTTP/2")),
                _ if is_identity_claim(name.as_bytes()) => {}
                _ => fields.push(name.as_bytes(), value),
            }
        }
        if !cookies.is_empty() {
            fields.push(b"cookie", &cookies);
        }
        Ok(Self { fields, host, length })
    }
}

#[cfg(test)]
mod tests {
    use outrider_policy::header::{HeaderMatch, ValueMatch};

    use super::*;
    use crate::http::{
        Version, h1,
        normalize::{Host, RequestParts},
    };

    /// Values that are good for the field, where most are not.
    fn value(name: &str) -> &'static str {
        match name {
            "content-length" => "0",
            "transfer-encoding" => "chunked",
            "expect" => "100-continue",
            "te" => "trailers",
            "connection" => "keep-alive",
            "traceparent" => "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            _ => "some-value",
        }
    }

    /// Whether policy sees the field of an HTTP/1.1 request.
    fn passes_http1(name: &str) -> bool {
        let text = format!("POST / HTTP/1.1\r\nHost: a.b\r\n{name}: {}\r\n\r\n", value(name));
        let head = h1::parse_request(text.as_bytes(), 100).unwrap().parts.normalize().unwrap();
        head.fields.values(name).next().is_some()
    }

    /// Whether policy sees the field of an HTTP/2 request.
    fn passes_http2(name: &str) -> bool {
        let map =
            [(http::HeaderName::try_from(name).unwrap(), http::HeaderValue::from_static(value(name)))].into_iter().collect();
        let Ok(read) = HeadFields::read(&map) else { return false };
        let host = Host::authority(Some(b"a.b"), read.host);
        let head = RequestParts::new(b"POST", b"/", host, read.fields, Version::Http2).unwrap().normalize().unwrap();
        head.fields.values(name).next().is_some()
    }

    #[test]
    fn policies_may_name_exactly_the_fields_that_reach_a_decision() {
        let names = "accept accept-encoding age allow authorization cache-control connection content-encoding content-length \
            content-location content-type cookie date expect forwarded from grpc-timeout http2-settings if-match keep-alive \
            l5d-client-id l5d-dst-override max-forwards origin pragma proxy-authenticate proxy-authorization proxy-connection range \
            referer sec-websocket-key sec-websocket-protocol te trailer trailers transfer-encoding upgrade \
            upgrade-insecure-requests user-agent via x-b3-traceid x-envoy-external-address x-envoy-original-path x-forwarded-client-cert \
            x-forwarded-for x-forwarded-host x-forwarded-proto x-http-method-override x-original-host x-original-method x-original-path \
            x-original-url x-outrider-retry x-outrider- x-real-ip x-request-id x-rewrite-url x-role x-tenant traceparent";
        for name in names.split_ascii_whitespace() {
            let may_be_named = HeaderMatch::new(name, ValueMatch::Present).is_ok();
            assert_eq!((passes_http1(name), passes_http2(name)), (may_be_named, may_be_named), "{name}");
        }
    }
}
