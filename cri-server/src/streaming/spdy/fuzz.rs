//! Frames from anybody. For fuzzing only.

use bytes::{Bytes, BytesMut};

use super::frame::{self, Frame, Head};
use super::headers::{Expander, Packer};

/// Reads bytes as one frame. What is written of it and read again is the same.
pub fn control_frame(bytes: &[u8]) {
    let Some((head, payload)) = bytes.split_first_chunk::<{ frame::HEAD }>() else { return };
    let Ok(Head::Control { kind, flags, .. }) = Head::parse(*head) else { return };
    let payload = Bytes::copy_from_slice(&payload[..payload.len().min(frame::MAX_CONTROL)]);
    let Ok(Some(frame)) = Frame::parse_control(kind, flags, payload) else { return };
    let mut written = BytesMut::new();
    frame.write(&mut written);
    let (head, payload) = written.split_first_chunk::<{ frame::HEAD }>().expect("a frame has a head");
    let Ok(Head::Control { kind, flags, length }) = Head::parse(*head) else {
        panic!("{frame:?} is no control frame when it was written");
    };
    assert_eq!(length, payload.len(), "{frame:?}");
    let again = Frame::parse_control(kind, flags, Bytes::copy_from_slice(payload));
    assert_eq!(again, Ok(Some(frame.clone())));
    if let Frame::SynStream { block, .. } | Frame::SynReply { block, .. } | Frame::Headers { block, .. } =
        frame
        && let Ok(headers) = Expander::default().read(&block)
    {
        let packed = Packer::default().write(&headers);
        assert_eq!(Expander::default().read(&packed).expect("reads back"), headers);
    }
}
