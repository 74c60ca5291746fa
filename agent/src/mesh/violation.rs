//! What a peer may not do. Each ends the connection, and is counted by its word.

/// A broken rule of the mesh protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A kind of frame that version 1 does not have.
    #[error("unknown kind of frame")]
    UnknownFrame,
    /// Longer or shorter than its kind allows.
    #[error("frame of a length that its kind does not have")]
    FrameLength,
    /// A frame of a stream on the connection, or the other way round.
    #[error("frame where its kind does not belong")]
    WrongStream,
    /// The end bit where it means nothing, or missing.
    #[error("end bit where it does not belong")]
    EndBit,
    /// A stream number that is not above all before it, or that the peer may not open.
    #[error("stream number out of order")]
    StreamNumber,
    /// A frame of a stream that was never opened.
    #[error("frame of a stream that was never opened")]
    NoSuchStream,
    /// A second head on a stream.
    #[error("second head on a stream")]
    SecondHead,
    /// Something before the head, or after the end.
    #[error("frame out of order on its stream")]
    OutOfOrder,
    /// A response's head that is none.
    #[error("head that cannot be read")]
    BadHead,
    /// Trailers that are none.
    #[error("trailers that cannot be read")]
    BadTrailers,
    /// More than the window allowed.
    #[error("more data than the window allows")]
    WindowExceeded,
    /// A window of zero, or above what there may be.
    #[error("window update out of bounds")]
    WindowUpdate,
    /// More streams at a time than there may be, again and again; pings, resets, window updates or empty frames without end.
    #[error("too many frames that carry nothing")]
    Flood,
    /// An answer to a ping that was not asked.
    #[error("answer to no ping")]
    StrayPong,
}

impl Violation {
    /// The word that metrics count it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownFrame => "unknown_frame",
            Self::FrameLength => "frame_length",
            Self::WrongStream => "wrong_stream",
            Self::EndBit => "end_bit",
            Self::StreamNumber => "stream_number",
            Self::NoSuchStream => "no_such_stream",
            Self::SecondHead => "second_head",
            Self::OutOfOrder => "out_of_order",
            Self::BadHead => "bad_head",
            Self::BadTrailers => "bad_trailers",
            Self::WindowExceeded => "window_exceeded",
            Self::WindowUpdate => "window_update",
            Self::Flood => "flood",
            Self::StrayPong => "stray_pong",
        }
    }
}
