//! DNS messages (RFC 1035, EDNS of RFC 6891): one question in, one answer out, and nothing that could be read in two ways.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Largest query taken. A question needs at most 271 bytes; the rest is room for options.
pub const LARGEST_QUERY: usize = 1024;
/// Largest answer over UDP that we announce and send.
pub const LARGEST_UDP: u16 = 1232;
/// Octets of a name, lengths of labels and the root included.
const LONGEST_NAME: usize = 255;
/// Octets of the fixed head.
const HEAD: usize = 12;

const A: u16 = 1;
const OPT: u16 = 41;
const AAAA: u16 = 28;
const IN: u16 = 1;

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The name exists; there may be no records of the kind that was asked for.
    NoError = 0,
    /// The query is not one.
    FormatError = 1,
    /// It cannot be told now.
    ServerFailure = 2,
    /// There is no such name.
    NoSuchName = 3,
    /// Not a plain query.
    NotImplemented = 4,
    /// Not answered here.
    Refused = 5,
}

/// A query that is no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Not even worth an answer: too short, or an answer itself. Answering answers would make loops.
    Silent,
    /// Its head could be read: answer with this code.
    Answer {
        /// Its id.
        id: u16,
        /// What it wanted done, in the place that an answer repeats it.
        opcode: u16,
        /// The code.
        code: Code,
    },
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Its id.
    pub id: u16,
    /// The name in lower case, labels joined by dots, without the one at the end; empty for the root.
    pub name: String,
    /// Whether every label is made of letters, digits, `-` and `_`: others name nothing in a mesh.
    pub is_plain: bool,
    /// Kind of record.
    pub kind: u16,
    /// Class.
    pub class: u16,
    recursion_desired: bool,
    /// Name, kind and class as they came: an answer repeats them to the letter.
    question: Vec<u8>,
    /// Size of UDP answers that the caller takes, when it speaks EDNS.
    edns: Option<u16>,
}

/// A query's octets, read from front to back.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    /// A name without compression, which a question has no use for.
    fn name(&mut self) -> Option<(String, bool)> {
        let (mut text, mut octets, mut is_plain) = (String::new(), 1, true);
        loop {
            let length = usize::from(self.u8()?);
            if length == 0 {
                return Some((text, is_plain));
            }
            octets += 1 + length;
            if length > 63 || octets > LONGEST_NAME {
                return None;
            }
            let label = self.take(length)?;
            is_plain &= label.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte));
            if !text.is_empty() {
                text.push('.');
            }
            text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        }
    }
}

impl Query {
    /// Reads a query, whole: what is left over makes it unreadable.
    ///
    /// # Errors
    /// How to answer what is not a question.
    pub fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut reader = Reader(bytes);
        let mut head = [0_u16; HEAD / 2];
        for field in &mut head {
            *field = reader.u16().ok_or(Unreadable::Silent)?;
        }
        let [id, flags, questions, answers, authorities, additional] = head;
        if flags & 0x8000 != 0 {
            return Err(Unreadable::Silent);
        }
        let opcode = flags & 0x7800;
        let wrong = |code| Unreadable::Answer { id, opcode, code };
        if opcode != 0 {
            return Err(wrong(Code::NotImplemented));
        }
        let malformed = wrong(Code::FormatError);
        if bytes.len() > LARGEST_QUERY || (questions, answers, authorities) != (1, 0, 0) || additional > 1 {
            return Err(malformed);
        }
        let before = reader.0;
        let (name, is_plain) = reader.name().ok_or(malformed)?;
        let (kind, class) = (reader.u16().ok_or(malformed)?, reader.u16().ok_or(malformed)?);
        let question = before.get(..before.len() - reader.0.len()).ok_or(malformed)?.to_vec();
        let edns = if additional == 1 { Some(options(&mut reader).ok_or(malformed)?) } else { None };
        if !reader.0.is_empty() {
            return Err(malformed);
        }
        Ok(Self { id, name, is_plain, kind, class, recursion_desired: flags & 0x0100 != 0, question, edns })
    }

    /// Whether it asks for an address, or for all there is, in the Internet's class.
    pub fn is_internet(&self) -> bool {
        self.class == IN
    }

    /// An answer without records.
    pub fn answer(&self, code: Code) -> Vec<u8> {
        self.write(code, 0, &[])
    }

    /// An answer with the addresses of a name: those of the kind that was asked for.
    pub fn addresses(&self, v4: Ipv4Addr, v6: Ipv6Addr, ttl: u32) -> Vec<u8> {
        let data: &[u8] = match self.kind {
            A => &v4.octets(),
            AAAA => &v6.octets(),
            _ => return self.answer(Code::NoError),
        };
        let mut record = vec![0xC0, 12]; // the question's name, at octet 12
        record.extend_from_slice(&self.kind.to_be_bytes());
        record.extend_from_slice(&IN.to_be_bytes());
        record.extend_from_slice(&ttl.to_be_bytes());
        record.extend_from_slice(&u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
        record.extend_from_slice(data);
        self.write(Code::NoError, 1, &record)
    }

    fn write(&self, code: Code, count: u16, records: &[u8]) -> Vec<u8> {
        let flags = 0x8080 | (u16::from(self.recursion_desired) << 8) | code as u16;
        let mut out = head(self.id, flags, 1, count, u16::from(self.edns.is_some()));
        out.extend_from_slice(&self.question);
        out.extend_from_slice(records);
        if self.edns.is_some() {
            out.extend_from_slice(&edns_record());
        }
        out
    }

    /// Cuts an answer to what the caller takes over UDP: too long a one becomes the hint to ask over TCP.
    pub fn fit_udp(&self, answer: Vec<u8>) -> Vec<u8> {
        let most = usize::from(self.edns.unwrap_or(512).clamp(512, LARGEST_UDP));
        if answer.len() <= most {
            return answer;
        }
        let mut short = self.write(Code::NoError, 0, &[]);
        if let Some(flags) = short.get_mut(2) {
            *flags |= 0x02; // TC
        }
        short
    }

    /// The same question under another id, as asked of another server.
    pub fn ask(&self, id: u16) -> Vec<u8> {
        let mut out = head(id, 0x0100, 1, 0, 1);
        out.extend_from_slice(&self.question);
        out.extend_from_slice(&edns_record());
        out
    }

    /// Another server's answer to [`Query::ask`] under our caller's id; none when it answers something else.
    pub fn relay(&self, id: u16, answer: &[u8]) -> Option<Vec<u8>> {
        let mut reader = Reader(answer);
        let (theirs, flags, questions) = (reader.u16()?, reader.u16()?, reader.u16()?);
        reader.take(6)?;
        let same = reader.take(self.question.len())?.eq_ignore_ascii_case(&self.question);
        if theirs != id || flags & 0xF800 != 0x8000 || questions != 1 || !same {
            return None;
        }
        let mut out = answer.to_vec();
        out.splice(..2, self.id.to_be_bytes());
        Some(out)
    }
}

/// The only additional record a query may have: EDNS, version 0.
fn options(reader: &mut Reader<'_>) -> Option<u16> {
    let is_root = reader.u8()? == 0;
    let (kind, size) = (reader.u16()?, reader.u16()?);
    let (version, length) = (*reader.take(4)?.get(1)?, reader.u16()?);
    reader.take(usize::from(length))?;
    (is_root && kind == OPT && version == 0).then_some(size)
}

fn edns_record() -> [u8; 11] {
    let [size_high, size_low] = LARGEST_UDP.to_be_bytes();
    let [kind_high, kind_low] = OPT.to_be_bytes();
    [0, kind_high, kind_low, size_high, size_low, 0, 0, 0, 0, 0, 0]
}

fn head(id: u16, flags: u16, questions: u16, answers: u16, additional: u16) -> Vec<u8> {
    [id, flags, questions, answers, 0, additional].iter().flat_map(|field| field.to_be_bytes()).collect()
}

/// An answer to what could not be read.
pub fn unreadable(id: u16, opcode: u16, code: Code) -> Vec<u8> {
    head(id, 0x8000 | opcode | code as u16, 0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = head(7, 0x0100, 1, 0, 0);
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.extend_from_slice(&[0, 0, kind as u8, 0, 1]);
        bytes
    }

    #[test]
    fn a_question_is_answered_to_the_letter() {
        let query = Query::read(&question("Orders.shop", A)).unwrap();
        assert_eq!((query.name.as_str(), query.kind, query.is_plain), ("orders.shop", A, true));
        let answer = query.addresses("240.1.2.3".parse().unwrap(), Ipv6Addr::LOCALHOST, 10);
        assert_eq!(&answer[..12], &[0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert!(answer.windows(6).any(|window| window == b"Orders"), "the letters of the question");
        assert!(answer.ends_with(&[0, 4, 240, 1, 2, 3]));
        let query = Query::read(&question("orders.shop", AAAA)).unwrap();
        assert!(query.addresses(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST, 10).ends_with(&Ipv6Addr::LOCALHOST.octets()));
        let https = Query::read(&question("orders.shop", 65)).unwrap().addresses(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST, 10);
        assert_eq!((https[3] & 15, https[7]), (0, 0), "no such record, but the name exists");
    }

    #[test]
    fn a_query_cut_anywhere_or_with_something_left_over_is_unreadable() {
        let whole = question("orders.shop", A);
        for at in 0..whole.len() {
            assert!(Query::read(&whole[..at]).is_err(), "cut at {at}");
        }
        assert!(Query::read(&[whole.as_slice(), b"x"].concat()).is_err());
    }

    #[test]
    fn what_is_no_plain_question_is_answered_as_such_or_not_at_all() {
        let with = |at: usize, value: u8| {
            let mut bytes = question("orders.shop", A);
            bytes[at] = value;
            Query::read(&bytes).unwrap_err()
        };
        let answered = |code| Unreadable::Answer { id: 7, opcode: 0, code };
        assert_eq!(with(2, 0x80), Unreadable::Silent, "an answer");
        let update = Unreadable::Answer { id: 7, opcode: 0x2800, code: Code::NotImplemented };
        assert_eq!(with(2, 0x29), update, "an update");
        for (at, value) in [(5, 0), (5, 2), (7, 1), (9, 1), (11, 2)] {
            assert_eq!(with(at, value), answered(Code::FormatError), "count {at} = {value}");
        }
        assert_eq!(with(12, 0xC0), answered(Code::FormatError), "compression in a question");
        assert_eq!(with(12, 64), answered(Code::FormatError), "a label of 64");
        let long = question(&["a".repeat(63).as_str(); 4].join("."), A);
        assert_eq!(Query::read(&long).unwrap_err(), answered(Code::FormatError), "256 octets of name");
    }

    #[test]
    fn edns_is_read_once_and_only_in_version_0() {
        let with = |record: &[u8]| {
            let mut bytes = question("orders.shop", A);
            bytes[11] = 1;
            Query::read(&[bytes.as_slice(), record].concat())
        };
        let record = edns_record();
        assert_eq!(with(&record).unwrap().edns, Some(LARGEST_UDP));
        let mut newer = record;
        newer[6] = 1;
        assert!(with(&newer).is_err());
        assert!(with(&[record, record].concat()).is_err());
        let query = with(&record).unwrap();
        assert_eq!(query.fit_udp(vec![0; 1232]).len(), 1232);
        assert!(query.fit_udp(vec![0; 1233])[2] & 2 != 0, "the caller comes again over TCP");
    }

    #[test]
    fn only_the_answer_to_the_question_is_relayed() {
        let query = Query::read(&question("example.com", A)).unwrap();
        let mut answer = query.ask(99);
        answer[2] |= 0x80;
        assert_eq!(query.relay(99, &answer).unwrap()[..2], [0, 7]);
        assert_eq!(query.relay(98, &answer), None, "another id");
        let mut other = answer.clone();
        other[13] = b'f';
        assert_eq!(query.relay(99, &other), None, "another name");
        assert_eq!(query.relay(99, &query.ask(99)), None, "a question");
        assert_eq!(query.relay(99, &answer[..20]), None);
    }
}
