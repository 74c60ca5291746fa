//! One JSON object written field by field: everything escaped, everything capped.

use std::net::SocketAddr;

use crate::{http::put_number, scan};

/// Most characters of one string.
const CAP: usize = 1024;

/// The name of a field with all that stands around it, made by [`key!`]: a line has twenty of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key(pub(super) &'static [u8]);

/// A [`Key`] of a word that needs no escape.
macro_rules! key {
    ($word:literal) => {
        $crate::telemetry::json::Key(concat!(",\"", $word, "\":").as_bytes())
    };
}
pub(super) use key;

/// A JSON object under construction, on one line.
#[derive(Debug)]
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    fn key(&mut self, Key(key): Key) {
        self.out.extend_from_slice(key.get(usize::from(std::mem::take(&mut self.first))..).unwrap_or_default());
    }

    /// A string; empty ones are left out.
    pub(super) fn text(&mut self, key: Key, value: &str) {
        if value.is_empty() {
            return;
        }
        self.key(key);
        self.out.push(b'"');
        // Nearly everything is plain ASCII.
        let plain = value.len() <= CAP && is_plain(value.as_bytes());
        if plain {
            self.out.extend_from_slice(value.as_bytes());
        } else {
            self.escaped(value);
        }
        self.out.push(b'"');
    }

    fn escaped(&mut self, value: &str) {
        for character in value.chars().take(CAP) {
            match character {
                '"' => self.out.extend_from_slice(b"\\\""),
                '\\' => self.out.extend_from_slice(b"\\\\"),
                // Also DEL and the C1 controls, which some terminals obey.
                control if control.is_control() => {
                    self.out.extend_from_slice(format!("\\u{:04x}", u32::from(control)).as_bytes())
                }
                plain => self.out.extend_from_slice(plain.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    /// A string that `write` writes and that needs no escape.
    pub(super) fn plain(&mut self, key: Key, write: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        self.out.push(b'"');
        write(self.out);
        self.out.push(b'"');
    }

    /// An address as it is shown.
    pub(super) fn shown(&mut self, key: Key, address: &SocketAddr) {
        self.plain(key, |out| match address {
            SocketAddr::V4(address) => {
                for (at, octet) in address.ip().octets().into_iter().enumerate() {
                    if at > 0 {
                        out.push(b'.');
                    }
                    put_number(out, u64::from(octet));
                }
                out.push(b':');
                put_number(out, u64::from(address.port()));
            }
            SocketAddr::V6(_) => {
                let _ = std::io::Write::write_fmt(out, format_args!("{address}"));
            }
        });
    }

    pub(super) fn number(&mut self, key: Key, value: u64) {
        self.key(key);
        put_number(self.out, value);
    }

    /// Fields that were written before, see [`fragment`].
    pub(super) fn written(&mut self, fields: &[u8]) {
        if !fields.is_empty() && !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        self.out.extend_from_slice(fields);
    }

    pub(super) fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }
}

/// Printable ASCII that JSON needs no escape for.
fn is_plain(bytes: &[u8]) -> bool {
    !scan::any(bytes, |byte| !(b' '..=b'~').contains(&byte) | (byte == b'"') | (byte == b'\\'))
}

/// Fields that many objects have alike, written once.
pub(super) fn fragment(write: impl FnOnce(&mut Object<'_>)) -> Box<[u8]> {
    let mut out = Vec::new();
    write(&mut Object { out: &mut out, first: true });
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_before_is_the_same_object() {
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        let addresses: [SocketAddr; 3] = ["127.0.0.1:80", "255.10.0.9:65535", "[::1]:8080"].map(|text| text.parse().unwrap());
        let write = |object: &mut Object<'_>| {
            object.text(key!("a"), "1");
            addresses.iter().for_each(|address| object.shown(key!("peer"), address));
        };
        let mut object = Object::new(&mut whole);
        write(&mut object);
        object.number(key!("n"), 7);
        object.end();
        let mut object = Object::new(&mut parts);
        object.written(&fragment(|_| {}));
        object.written(&fragment(write));
        object.number(key!("n"), 7);
        object.end();
        assert_eq!(whole, parts);
        let text = String::from_utf8(whole).unwrap();
        assert!(addresses.iter().all(|address| text.contains(&format!("\"{address}\""))), "{text}");
    }

    #[test]
    fn hostile_text_stays_one_valid_capped_line() {
        let hostile = format!("a\"b\\c\nd\u{1b}[31m\u{7f}\u{9b}2J\u{0}{}", "x".repeat(64 << 10));
        let mut out = Vec::new();
        let mut object = Object::new(&mut out);
        object.text(key!("path"), &hostile);
        object.number(key!("n"), 0);
        object.number(key!("m"), u64::MAX);
        object.end();
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let text = std::str::from_utf8(&out).unwrap();
        assert!(text.trim_end().chars().all(|character| !character.is_control()), "nothing that a terminal obeys");
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["path"].as_str().unwrap(), hostile.chars().take(CAP).collect::<String>());
        assert_eq!((value["n"].as_u64(), value["m"].as_u64()), (Some(0), Some(u64::MAX)));
    }
}
