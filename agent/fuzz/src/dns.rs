//! What holds for any bytes that arrive as a DNS message.

use outrider_agent::dns::message::{Code, LARGEST_QUERY, LARGEST_UDP, Query, Unreadable, unreadable};

/// `data` arrives as a question, and as the answer to one.
pub fn dns(data: &[u8]) {
    let query = match Query::read(data) {
        Ok(query) => query,
        Err(Unreadable::Silent) => return assert!(data.len() < 12 || data[2] & 0x80 != 0, "silence is for what is no query"),
        Err(Unreadable::Answer { id, opcode, code }) => {
            let answer = unreadable(id, opcode, code);
            return assert!(answer.len() == 12 && answer[..2] == data[..2] && answer[2] & 0x80 != 0 && code != Code::NoError);
        }
    };
    assert!(data.len() <= LARGEST_QUERY && query.name.chars().count() < 255);
    // The question ends where kind and class end: what stands there is repeated to the letter.
    let asked = query.ask(0x1234);
    let question = &asked[12..asked.len() - 11];
    assert_eq!(&data[12..12 + question.len()], question);
    let pair = ([240, 0, 0, 1].into(), [0xfd, 1, 2, 3, 4, 5, 6, 7].into());
    for answer in [query.answer(Code::NoSuchName), query.addresses(pair.0, pair.1, 10), query.fit_udp(vec![0; 4096])] {
        assert!(answer.starts_with(&data[..2]) && answer[2] & 0x80 != 0 && answer.len() <= usize::from(LARGEST_UDP));
        assert_eq!(&answer[12..12 + question.len()], question);
        assert_eq!(Query::read(&answer), Err(Unreadable::Silent), "answers are not answered");
    }
    let again = Query::read(&asked).expect("what we ask can be read");
    assert_eq!((again.name, again.kind, again.class), (query.name.clone(), query.kind, query.class));
    // Nobody answers in another's place.
    assert_eq!(query.relay(0x1234, &asked), None);
    if let Some(relayed) = query.relay(query.id, data) {
        assert_eq!(relayed.len(), data.len());
    }
    let mut answer = asked;
    answer[2] |= 0x80;
    assert_eq!(query.relay(0x1234, &answer).map(|relayed| relayed[..2].to_vec()), Some(data[..2].to_vec()));
    assert_eq!(query.relay(0x1235, &answer), None);
}
