//! One JSON object written field by field: everything escaped, everything capped.

/// Most characters of one string.
const CAP: usize = 1024;

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

    fn key(&mut self, key: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A string; empty ones are left out.
    pub(super) fn text(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        self.key(key);
        self.out.push(b'"');
        // Nearly everything is plain ASCII.
        let plain = value.len() <= CAP && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
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
    pub(super) fn plain(&mut self, key: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        self.out.push(b'"');
        write(self.out);
        self.out.push(b'"');
    }

    /// An address as it is shown.
    pub(super) fn shown(&mut self, key: &str, address: &std::net::SocketAddr) {
        self.plain(key, |out| {
            let _ = std::io::Write::write_fmt(out, format_args!("{address}"));
        });
    }

    pub(super) fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        let mut digits = [0_u8; 20];
        let (mut at, mut left) = (digits.len(), value);
        loop {
            at -= 1;
            if let Some(digit) = digits.get_mut(at) {
                *digit = b'0' + (left % 10) as u8;
            }
            left /= 10;
            if left == 0 {
                break;
            }
        }
        self.out.extend_from_slice(digits.get(at..).unwrap_or_default());
    }

    pub(super) fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_one_valid_capped_line() {
        let hostile = format!("a\"b\\c\nd\u{1b}[31m\u{7f}\u{9b}2J\u{0}{}", "x".repeat(64 << 10));
        let mut out = Vec::new();
        let mut object = Object::new(&mut out);
        object.text("path", &hostile);
        object.number("n", 0);
        object.number("m", u64::MAX);
        object.end();
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let text = std::str::from_utf8(&out).unwrap();
        assert!(text.trim_end().chars().all(|character| !character.is_control()), "nothing that a terminal obeys");
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["path"].as_str().unwrap(), hostile.chars().take(CAP).collect::<String>());
        assert_eq!((value["n"].as_u64(), value["m"].as_u64()), (Some(0), Some(u64::MAX)));
    }
}
