//! Bounds on what a peer can make the agent hold or wait for: each with a default, and set by `--limit NAME=VALUE`.

use std::{str::FromStr, time::Duration};

/// Trailers that a caller may send, and their bytes; the same in every protocol.
pub(crate) const MOST_TRAILERS: usize = 32;
pub(crate) const TRAILER_BYTES: usize = 8 << 10;
/// What a caller takes of an answer at least within [`Limits::take`].
pub(crate) const TAKEN: usize = 16 << 10;

/// A value of a limit that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LimitProblem(String);

macro_rules! limits {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:literal, $name:literal, $least:literal..=$most:literal;)*) => {
        /// What a peer can make the agent hold or wait for.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Limits { $($(#[$doc])* pub $field: $type,)* }

        impl Limits {
            /// Name and default of each, as `docs/limits.md` lists them.
            pub const ALL: &[(&str, &str)] = &[$(($name, $default),)*];

            /// Sets one, as a user writes it.
            ///
            /// # Errors
            /// When there is no such limit, or it cannot have this value.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), LimitProblem> {
                match name {
                    $($name => self.$field = read::<$type>(name, value, ($least, $most))?,)*
                    _ => {
                        let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
                        return Err(LimitProblem(format!("there is no limit `{name}`: there are {}", names.join(", "))));
                    }
                }
                Ok(())
            }
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($field: <$type as Value>::read($default).unwrap_or_default(),)* }
            }
        }
    };
}

limits! {
    /// Bytes of a head, start line included.
    head_bytes: usize = "32KiB", "head", "1KiB"..="256KiB";
    /// Bytes of the heads of all requests under way on a connection of HTTP/2 or the mesh protocol.
    heads: usize = "3MiB", "heads", "64KiB"..="1GiB";
    /// Fields of a head.
    fields: usize = "100", "fields", "10"..="100";
    /// Time for a head to arrive once its first byte has.
    head_read: Duration = "10s", "head-time", "1s"..="1h";
    /// Bytes of a request's body.
    body_bytes: usize = "1GiB", "body", "1KiB"..="1TiB";
    /// Bytes a second that a request's body must have on average, from its eleventh second on.
    body_rate: usize = "128", "body-rate", "1"..="1GiB";
    /// Time a caller may pause within an HTTP/1.1 request body, and an upstream before it takes more of one.
    stall: Duration = "30s", "stall-time", "1s"..="1h";
    /// Time a caller may let pass before it takes the next [`TAKEN`] bytes of an answer.
    take: Duration = "20s", "take-time", "1s"..="1h";
    /// Time a connection may stay without a request.
    idle: Duration = "75s", "idle-time", "1s"..="24h";
    /// Time from the first byte of a request to the last of its response.
    request: Duration = "1h", "request-time", "1s"..="168h";
    /// Time after which a connection is asked to go.
    age: Duration = "1h", "connection-age", "1s"..="168h";
    /// Time an upstream may take to begin its response once it has the whole request.
    response_head: Duration = "60s", "response-time", "1s"..="24h";
    /// Interim (1xx) responses before a final one.
    interim_responses: usize = "8", "interim-responses", "1"..="100";
    /// Time for TCP and TLS to an upstream.
    connect: Duration = "5s", "connect-time", "1s"..="1h";
    /// Time for a TLS handshake that a caller began.
    handshake: Duration = "10s", "handshake-time", "1s"..="1h";
    /// Streams at a time on an HTTP/2 connection.
    streams: u32 = "256", "streams", "1"..="10000";
    /// Requests under way at a time, of a worker.
    requests: usize = "10000", "requests", "1"..="1000000";
    /// Bytes of the heads of all of these.
    worker_heads: usize = "32MiB", "worker-heads", "1MiB"..="16GiB";
    /// Connections from callers at a time, of the agent.
    connections: usize = "20000", "connections", "1"..="1000000";
    /// Of those, from one address to the listeners for other agents and for plaintext.
    connections_of_address: usize = "10000", "connections-per-address", "1"..="1000000";
    /// HTTP/2 frames without payload that a peer may send at once.
    control_frames: u32 = "1000", "control-frames", "50"..="1000000";
    /// Of them, how many it earns back a second.
    control_rate: u32 = "100", "control-frames-per-second", "1"..="1000000";
}

impl Limits {
    /// When a connection that begins now is asked to go: a little earlier at random, so that not all go at once.
    pub fn connection_end(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.age.mul_f64(1.0 - fastrand::f64() / 10.0)
    }

    /// The defaults, changed by `NAME=VALUE` each.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn changed(changes: &[String]) -> Result<Self, Vec<LimitProblem>> {
        let (mut limits, mut problems) = (Self::default(), Vec::new());
        for change in changes {
            let set = match change.split_once('=') {
                Some((name, value)) => limits.set(name.trim(), value.trim()),
                None => Err(LimitProblem(format!("`{change}` is not NAME=VALUE"))),
            };
            problems.extend(set.err());
        }
        if problems.is_empty() { Ok(limits) } else { Err(problems) }
    }
}

fn read<T: Value + PartialOrd>(name: &str, value: &str, (least, most): (&str, &str)) -> Result<T, LimitProblem> {
    let within = |read: &T| T::read(least).is_some_and(|least| *read >= least) && T::read(most).is_some_and(|most| *read <= most);
    let wrong = || LimitProblem(format!("limit `{name}` is `{value}`: use {} from {least} to {most}", T::WHAT));
    T::read(value).filter(within).ok_or_else(wrong)
}

/// What a limit is written as.
trait Value: Sized {
    /// What it is, for whoever wrote something else.
    const WHAT: &str;
    /// Reads it.
    fn read(text: &str) -> Option<Self>;
}

/// A number with a unit of some size.
fn sized(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, size) = units.iter().find(|(name, _)| *name == unit)?;
    u64::from_str(number).ok()?.checked_mul(*size)
}

impl Value for usize {
    const WHAT: &str = "a whole number, with KiB, MiB, GiB or TiB if it is large,";

    fn read(text: &str) -> Option<Self> {
        let size = sized(text, &[("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)])?;
        Self::try_from(size).ok()
    }
}

impl Value for u32 {
    const WHAT: &str = "a whole number";

    fn read(text: &str) -> Option<Self> {
        Self::try_from(sized(text, &[("", 1)])?).ok()
    }
}

impl Value for Duration {
    const WHAT: &str = "a time with its unit (s, m or h)";

    fn read(text: &str) -> Option<Self> {
        sized(text, &[("s", 1), ("m", 60), ("h", 3600)]).map(Self::from_secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_default_within_its_bounds_and_can_be_set() {
        let defaults = Limits::default();
        assert_eq!((defaults.head_bytes, defaults.fields, defaults.body_bytes), (32 << 10, 100, 1 << 30));
        assert_eq!((defaults.idle, defaults.age), (Duration::from_secs(75), Duration::from_secs(3600)));
        for (name, default) in Limits::ALL {
            assert_eq!(Limits::changed(&[format!("{name}={default}")]).as_ref(), Ok(&defaults), "{name}");
        }
        let changed = Limits::changed(&["body=10MiB".to_owned(), "idle-time = 2m".to_owned()]).unwrap();
        assert_eq!((changed.body_bytes, changed.idle), (10 << 20, Duration::from_secs(120)));
    }

    #[test]
    fn none_can_be_switched_off_or_be_nonsense() {
        for (name, _) in Limits::ALL {
            for value in ["0", "0s", "-1", "", "off", "99999999999999999999", "1.5", "10 s", "9999999h"] {
                assert!(Limits::changed(&[format!("{name}={value}")]).is_err(), "{name}={value}");
            }
        }
        let problems = Limits::changed(&["x=1".into(), "fields=101".into(), "body".into()]).unwrap_err();
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(said[0].contains("`x`") && said[0].contains("head-time"), "{said:?}");
        assert!(said[1].contains("from 10 to 100") && said[2].contains("NAME=VALUE"), "{said:?}");
    }

    #[test]
    fn the_page_lists_exactly_the_limits_that_there_are() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/limits.md")).unwrap();
        let listed: Vec<(&str, &str)> = page
            .lines()
            .filter(|line| line.starts_with("| `"))
            .filter_map(|line| {
                let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`'));
                Some((cells.next()?, cells.next()?))
            })
            .collect();
        assert_eq!(listed, Limits::ALL);
    }
}
