//! What two agents say to each other: records of one size, each with a descriptor or without.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Octets of a record. A descriptor travels with the first of them.
const SIZE: usize = 256;

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The first word of either side, with what it speaks.
    Hello = 1,
    /// The state directory's lock.
    Lock = 2,
    /// A socket, with its name.
    Socket = 3,
    /// That was all.
    End = 4,
    /// The next agent serves.
    Serving = 5,
    /// The first one takes no more connections.
    Leaving = 6,
}

impl Word {
    fn of(octet: u8) -> Option<Self> {
        [Self::Hello, Self::Lock, Self::Socket, Self::End, Self::Serving, Self::Leaving]
            .into_iter()
            .find(|word| *word as u8 == octet)
    }
}

/// A record as it came.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) word: Word,
    pub(super) text: String,
    pub(super) descriptor: Option<OwnedFd>,
}

/// Sends a record.
///
/// # Errors
/// When the other side is gone, or the text is too long.
pub(super) fn send(stream: &UnixStream, word: Word, text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = written(word, text)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let sent = sendmsg(stream.as_fd(), &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let rest = bytes.get(sent..).unwrap_or_default();
    io::Write::write_all(&mut &*stream, rest)
}

/// Receives a record.
///
/// # Errors
/// When the other side is gone, or says what is no record.
pub(super) fn receive(stream: &UnixStream) -> io::Result<Record> {
    let mut bytes = [0; SIZE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptors.last().or(descriptor);
        }
    }
    io::Read::read_exact(&mut &*stream, bytes.get_mut(got..).unwrap_or_default())?;
    let (word, text) = read(&bytes).ok_or_else(|| io::Error::other("what it says is no record"))?;
    Ok(Record { word, text, descriptor })
}

fn written(word: Word, text: &str) -> io::Result<[u8; SIZE]> {
    let mut bytes = [0; SIZE];
    let (head, rest) = bytes.split_at_mut(2);
    let place = rest.get_mut(..text.len()).ok_or_else(|| io::Error::other(format!("`{text}` is too long")))?;
    place.copy_from_slice(text.as_bytes());
    head.copy_from_slice(&[word as u8, u8::try_from(text.len()).map_err(io::Error::other)?]);
    Ok(bytes)
}

fn read(bytes: &[u8; SIZE]) -> Option<(Word, String)> {
    let [word, length, text @ ..] = bytes;
    let text = std::str::from_utf8(text.get(..usize::from(*length))?).ok()?;
    Some((Word::of(*word)?, text.to_owned()))
}

/// A record as an agent would write what it read in these bytes; none when they are no record. For the fuzz targets.
pub fn reread(bytes: &[u8; SIZE]) -> Option<[u8; SIZE]> {
    let (word, text) = read(bytes)?;
    written(word, &text).ok()
}

/// Receives a record that must be this word.
///
/// # Errors
/// When it is another, or none.
pub(super) fn expect(stream: &UnixStream, word: Word) -> io::Result<Record> {
    let record = receive(stream)?;
    if record.word == word {
        Ok(record)
    } else {
        Err(io::Error::other(format!("it said {:?} in place of {word:?}", record.word)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_record_and_with_no_other() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut given, kept) = UnixStream::pair().unwrap();
        send(&near, Word::Hello, "hello", None).unwrap();
        send(&near, Word::Socket, "mesh", Some(kept.as_fd())).unwrap();
        send(&near, Word::End, "", None).unwrap();
        drop(kept);
        let hello = receive(&far).unwrap();
        assert_eq!((hello.word, hello.text.as_str(), hello.descriptor.is_none()), (Word::Hello, "hello", true));
        let mut socket = UnixStream::from(receive(&far).unwrap().descriptor.unwrap());
        assert!(expect(&far, Word::End).unwrap().descriptor.is_none());
        socket.write_all(b"it lives").unwrap();
        let mut heard = [0; 8];
        given.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"it lives");
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&[9; SIZE]).unwrap();
        assert!(receive(&far).is_err(), "an unknown word");
        near.write_all(&[1, 255].iter().chain(&[0; SIZE - 2]).copied().collect::<Vec<u8>>()).unwrap();
        assert!(receive(&far).is_err(), "a text that is longer than the record");
        assert!(send(&near, Word::Socket, &"x".repeat(255), None).is_err());
        near.write_all(&[1, 0]).unwrap();
        drop(near);
        assert!(receive(&far).is_err(), "half a record");
        assert_eq!(receive(&far).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
