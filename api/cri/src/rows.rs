//! Lists whose rows many answers share: each row is encoded once, however many lists show it.
//!
//! A node answers the same lists again and again, of up to thousands of containers that hardly change. Encoding a row
//! takes dozens of steps, and copying what is encoded takes one.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, Message};

use crate::v1::{Container, PodSandbox};

/// A row of a list: a message that is shared, and encoded once. Copies are cheap.
#[derive(Debug, Default)]
pub struct Row<M>(Arc<Kept<M>>);

#[derive(Debug, Default, Clone)]
struct Kept<M> {
    message: M,
    /// The message as it is sent; made when it is sent for the first time.
    encoded: OnceLock<Box<[u8]>>,
}

impl<M> Clone for Row<M> {
    fn clone(&self) -> Row<M> {
        Row(self.0.clone())
    }
}

impl<M> From<M> for Row<M> {
    fn from(message: M) -> Row<M> {
        Row(Arc::new(Kept { message, encoded: OnceLock::new() }))
    }
}

impl<M> Deref for Row<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0.message
    }
}

impl<M: PartialEq> PartialEq for Row<M> {
    fn eq(&self, other: &Row<M>) -> bool {
        **self == **other
    }
}

impl<M: Message> Row<M> {
    fn encoded(&self) -> &[u8] {
        self.0.encoded.get_or_init(|| self.0.message.encode_to_vec().into_boxed_slice())
    }
}

impl<M: Clone> Row<M> {
    /// To change it, or a copy of it where it is shared; what was encoded is forgotten.
    fn message_mut(&mut self) -> &mut M {
        let kept = Arc::make_mut(&mut self.0);
        kept.encoded = OnceLock::new();
        &mut kept.message
    }
}

impl<M: Message + Clone + Default> Message for Row<M> {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(self.encoded());
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        self.message_mut().merge_field(tag, wire_type, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.encoded().len()
    }

    fn clear(&mut self) {
        *self = Row::default();
    }
}

/// What `ListContainers` answers.
#[derive(Clone, PartialEq, Message)]
pub struct ListContainersResponse {
    /// The containers.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Row<Container>>,
}

/// A piece of what `StreamContainers` answers.
#[derive(Clone, PartialEq, Message)]
pub struct StreamContainersResponse {
    /// Some of the containers.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Row<Container>>,
}

/// What `ListPodSandbox` answers.
#[derive(Clone, PartialEq, Message)]
pub struct ListPodSandboxResponse {
    /// The sandboxes.
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<Row<PodSandbox>>,
}

/// A piece of what `StreamPodSandboxes` answers.
#[derive(Clone, PartialEq, Message)]
pub struct StreamPodSandboxesResponse {
    /// Some of the sandboxes.
    #[prost(message, repeated, tag = "1")]
    pub pod_sandboxes: Vec<Row<PodSandbox>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer as its definition alone would have it.
    #[derive(Clone, PartialEq, Message)]
    struct Plain {
        #[prost(message, repeated, tag = "1")]
        containers: Vec<Container>,
    }

    fn row(name: &str) -> Container {
        let labels = [("a".to_owned(), name.to_owned())].into();
        Container { id: name.to_owned(), state: 2, labels, created_at: 7, ..Container::default() }
    }

    #[test]
    fn shared_rows_are_sent_as_plain_ones() {
        let rows = [row("x"), Container::default(), row(&"long ".repeat(100))];
        let plain = Plain { containers: rows.to_vec() }.encode_to_vec();
        let list = ListContainersResponse { containers: rows.into_iter().map(Row::from).collect() };
        assert_eq!(list.encode_to_vec(), plain);
        // A second time, from what is kept.
        assert_eq!(list.clone().encode_to_vec(), plain);
        assert_eq!(ListContainersResponse::decode(plain.as_slice()), Ok(list));
    }

    #[test]
    fn what_changes_is_encoded_anew_and_only_there() {
        let mut one = Row::from(row("x"));
        let before = one.encode_to_vec();
        let other = one.clone();
        one.merge(row("y").encode_to_vec().as_slice()).expect("a message");
        assert_eq!((one.id.as_str(), other.id.as_str()), ("y", "x"));
        assert_eq!(Container::decode(one.encode_to_vec().as_slice()).as_ref(), Ok(&*one));
        assert_eq!(other.encode_to_vec(), before);
        one.clear();
        assert_eq!((one.encoded_len(), &*one), (0, &Container::default()));
    }
}
