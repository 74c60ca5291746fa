//! Deadlines that callers of gRPC send along: read, capped, and passed on with what is left of them.

use std::time::Duration;

use crate::http::{Fields, RequestHead};

/// Field of a deadline.
const FIELD: &str = "grpc-timeout";
/// Longest deadline that is passed on.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The time that a caller of gRPC gives a request, at most a day. None when it gives none, or something that is no time:
/// the program over there says what it thinks of that.
pub(super) fn given(head: &RequestHead) -> Option<Duration> {
    let is_grpc = |kind: &[u8]| kind.starts_with(b"application/grpc");
    let value = head.fields.single(FIELD).filter(|_| head.fields.single("content-type").is_some_and(is_grpc))?;
    let (unit, digits) = value.split_last()?;
    let number = std::str::from_utf8(digits)
        .ok()
        .filter(|digits| (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let number: u64 = number.parse().ok()?;
    let time = match unit {
        b'H' => Duration::from_secs(number.saturating_mul(3600)),
        b'M' => Duration::from_secs(number.saturating_mul(60)),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    };
    Some(time.min(LONGEST))
}

/// Writes what is left into the fields: whole milliseconds while they fit, else seconds.
pub(super) fn pass_on(fields: &mut Fields, left: Duration) {
    let millis = left.as_millis().max(1);
    let text = if millis < 100_000_000 { format!("{millis}m") } else { format!("{}S", left.as_secs()) };
    fields.set(FIELD, text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Version;

    fn head(timeout: &str, kind: &str) -> RequestHead {
        let mut fields = Fields::default();
        fields.push(FIELD.as_bytes(), timeout.as_bytes());
        fields.push(b"content-type", kind.as_bytes());
        RequestHead {
            method: http::Method::POST,
            target: "/a/B".to_owned(),
            path_len: 4,
            host: "orders.shop".into(),
            host_port: None,
            fields,
            version: Version::Http2,
            id: String::new(),
            upgrade: None,
            trace: None,
        }
    }

    #[test]
    fn deadlines_are_read_capped_and_passed_on() {
        for (text, millis) in [
            ("100m", Some(100)),
            ("1S", Some(1000)),
            ("2M", Some(120_000)),
            ("99999999H", Some(86_400_000)),
            ("99999999S", Some(86_400_000)),
            ("5000u", Some(5)),
            ("1n", Some(0)),
            ("999999999S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1s", None),
            ("1.5S", None),
        ] {
            assert_eq!(given(&head(text, "application/grpc+proto")).map(|time| time.as_millis()), millis, "{text}");
            assert_eq!(given(&head(text, "text/plain")), None);
        }
        let mut own = head("1S", "application/grpc");
        pass_on(&mut own.fields, Duration::from_millis(700));
        assert_eq!(own.fields.single(FIELD), Some(b"700m".as_slice()));
        pass_on(&mut own.fields, LONGEST * 2);
        assert_eq!(given(&own), Some(LONGEST));
    }
}
