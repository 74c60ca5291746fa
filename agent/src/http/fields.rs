//! Header fields in the form they have on the HTTP/1.1 wire, with an index: names in lower case, values without outer white space.

use std::ops::{ControlFlow, Range};

use smallvec::SmallVec;

use super::h1;
use crate::spare;

/// Fields that there is room for without an allocation.
const USUAL: usize = 8;

/// Header fields of one message, or its trailers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// `name: value\r\n` for every field.
    wire: Vec<u8>,
    lines: SmallVec<[Line; USUAL]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    start: u32,
    name: u32,
    value: u32,
}

impl Line {
    fn name(self) -> Range<usize> {
        self.start as usize..(self.start + self.name) as usize
    }

    fn value(self) -> Range<usize> {
        let from = (self.start + self.name) as usize + 2;
        from..from + self.value as usize
    }

    fn whole(self) -> Range<usize> {
        self.start as usize..self.value().end + 2
    }
}

impl Fields {
    /// None, with room for `bytes` of them.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { wire: spare::take_fields(bytes), lines: SmallVec::new() }
    }

    /// Adds a field. The caller has checked that `name` is a token and `value` has no line breaks; heads are at most
    /// [`crate::http::Limits::head_bytes`] long, so positions fit.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let start = self.wire.len();
        self.put(name, value);
        self.wire.get_mut(start..start + name.len()).unwrap_or_default().make_ascii_lowercase();
    }

    /// The same of a name in lower case.
    pub(crate) fn append(&mut self, name: &[u8], value: &[u8]) {
        debug_assert!(!name.iter().any(u8::is_ascii_uppercase), "others look for names in lower case");
        self.put(name, value);
    }

    fn put(&mut self, name: &[u8], value: &[u8]) {
        let start = self.wire.len() as u32;
        self.wire.reserve(name.len() + value.len() + 4);
        self.wire.extend_from_slice(name);
        self.wire.extend_from_slice(b": ");
        self.wire.extend_from_slice(value);
        self.wire.extend_from_slice(b"\r\n");
        self.lines.push(Line { start, name: name.len() as u32, value: value.len() as u32 });
    }

    /// Adds a field as it was read. Most lines have the form already that they have here: then they are copied in one piece.
    pub(crate) fn push_line(&mut self, line: &h1::Line<'_>) {
        let Some(plain) = line.plain else { return self.push(line.name, line.value) };
        let start = self.wire.len();
        self.wire.reserve(plain.len() + 2);
        self.wire.extend_from_slice(plain);
        if line.has_capitals {
            self.wire.get_mut(start..start + line.name.len()).unwrap_or_default().make_ascii_lowercase();
        }
        self.wire.extend_from_slice(b"\r\n");
        self.lines.push(Line { start: start as u32, name: line.name.len() as u32, value: line.value.len() as u32 });
    }

    /// Fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.lines
            .iter()
            .map(|line| (self.wire.get(line.name()).unwrap_or_default(), self.wire.get(line.value()).unwrap_or_default()))
    }

    /// Where names and values stand in [`Fields::as_wire`], in order.
    pub(crate) fn places(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        self.lines.iter().map(|line| (line.name(), line.value()))
    }

    /// Values of a field, by its name in lower case, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(each, _)| *each == name.as_bytes()).map(|(_, value)| value)
    }

    /// The value of a field that is there exactly once.
    pub fn single<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        let mut values = self.values(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// Keeps the fields whose name passes.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8]) -> bool) {
        let (mut kept, mut end) = (0, 0);
        for index in 0..self.lines.len() {
            let Some(mut line) = self.lines.get(index).copied() else { break };
            if !keep(self.wire.get(line.name()).unwrap_or_default()) {
                continue;
            }
            let (whole, length) = (line.whole(), line.whole().len());
            if whole.start != end {
                self.wire.copy_within(whole, end);
                line.start = end as u32;
            }
            if let Some(place) = self.lines.get_mut(kept) {
                *place = line;
            }
            (kept, end) = (kept + 1, end + length);
        }
        self.lines.truncate(kept);
        self.wire.truncate(end);
    }

    /// Drops all fields of this name, in lower case.
    pub fn remove(&mut self, name: &str) {
        // Mostly there are none, and nothing has to be moved.
        if self.values(name).next().is_some() {
            self.retain(|each| each != name.as_bytes());
        }
    }

    /// Replaces all fields of this name, in lower case, by one.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        if self.single(name) != Some(value) {
            self.remove(name);
            self.append(name.as_bytes(), value);
        }
    }

    /// All fields as HTTP/1.1 writes them, without the empty line at the end.
    pub fn as_wire(&self) -> &[u8] {
        &self.wire
    }

    /// Bytes that they take in memory.
    pub(crate) fn held(&self) -> usize {
        self.wire.capacity()
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Drops the last field.
    pub fn pop(&mut self) {
        if let Some(line) = self.lines.pop() {
            self.wire.truncate(line.whole().start);
        }
    }
}

impl Drop for Fields {
    fn drop(&mut self) {
        spare::give_fields(std::mem::take(&mut self.wire));
    }
}

/// Appends a number in decimal, without the machinery of formatting.
pub(crate) fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

impl outrider_policy::Headers for Fields {
    fn visit(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) {
        for value in self.values(name) {
            if each(value).is_break() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_and_every_line_is_kept() {
        let mut fields = Fields::default();
        fields.push(b"X-Role", b"user");
        fields.push(b"x-role", b"admin");
        assert_eq!(fields.values("x-role").collect::<Vec<_>>(), [b"user".as_slice(), b"admin"]);
        assert_eq!(fields.as_wire(), b"x-role: user\r\nx-role: admin\r\n");
        assert_eq!(fields.single("x-role"), None);
    }

    #[test]
    fn what_is_kept_stays_in_order_and_in_place() {
        let all = [("a", "1"), ("bb", "22"), ("c", ""), ("bb", "3"), ("d", "4444"), ("e", "5")];
        for kept in ["", "a", "bb", "c", "abbc", "acde", "bbe", "abbcde"] {
            let mut fields = Fields::default();
            let mut expected = Fields::default();
            for (name, value) in all {
                fields.push(name.as_bytes(), value.as_bytes());
                if kept.contains(name) {
                    expected.push(name.as_bytes(), value.as_bytes());
                }
            }
            fields.retain(|name| kept.as_bytes().windows(name.len()).any(|window| window == name));
            assert_eq!(fields, expected, "{kept}");
        }
    }

    #[test]
    fn set_leaves_exactly_one() {
        let mut fields = Fields::default();
        fields.push(b"a", b"1");
        fields.push(b"b", b"2");
        fields.push(b"a", b"3");
        fields.set("a", b"4");
        assert_eq!(fields.as_wire(), b"b: 2\r\na: 4\r\n");
        fields.set("b", b"2");
        assert_eq!(fields.as_wire(), b"b: 2\r\na: 4\r\n", "it is so already");
    }
}
