//! The trait over gRPC on a unix socket: how a kubelet speaks to another runtime, and tests to ours.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::calls::{Cri, ItemStream, for_each_call};
use crate::serve::MESSAGE_LIMIT;
use crate::v1::image_service_client::ImageServiceClient;
use crate::v1::runtime_service_client::RuntimeServiceClient;
use crate::v1::*;

/// Why a CRI socket could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there, or we may not.
    #[error("connect to the CRI socket {path}")]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What gRPC said.
        source: tonic::transport::Error,
    },
}

/// A [`Cri`] behind a unix socket. Cheap to clone; it reconnects by itself.
#[derive(Clone, Debug)]
pub struct GrpcClient {
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
}

impl GrpcClient {
    /// Connects to the socket at `path` (a prefix `unix://` is allowed). Waits at most ten seconds.
    pub async fn connect(path: impl AsRef<Path>) -> Result<GrpcClient, ConnectError> {
        let path = plain_path(path.as_ref());
        // The address is never used: the connector below always takes the socket.
        let endpoint = Endpoint::from_static("http://cri.invalid").connect_timeout(Duration::from_secs(10));
        let socket = path.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|source| ConnectError::Connect { path, source })?;
        Ok(GrpcClient {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
            image: ImageServiceClient::new(channel)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
        })
    }
}

/// Kubernetes writes sockets as URLs; we take both.
fn plain_path(path: &Path) -> PathBuf {
    path.to_str()
        .and_then(|text| text.strip_prefix("unix://"))
        .map_or_else(|| path.to_path_buf(), PathBuf::from)
}

macro_rules! implement_client {
    (
        runtime {
            unary { $( $(#[$rm:meta])* $rc:ident($rq:ident) -> $rr:ident; )* }
            optional { $( $(#[$om:meta])* $oc:ident($oq:ident) -> $or:ident; )* }
            pieces { $( $(#[$pm:meta])* $pc:ident($pq:ident) -> $pr:ident { $pf:ident } as $ps:ident
                from $pl:ident($plq:ident { $($pi:ident)? }) { $po:ident }; )* }
        }
        image {
            unary { $( $(#[$im:meta])* $ic:ident($iq:ident) -> $ir:ident; )* }
            pieces { $( $(#[$sm:meta])* $sc:ident($sq:ident) -> $sr:ident { $sf:ident } as $ss:ident
                from $sl:ident($slq:ident { $($si:ident)? }) { $so:ident }; )* }
        }
    ) => {
        #[async_trait::async_trait]
        impl Cri for GrpcClient {
            $( async fn $rc(&self, request: $rq) -> Result<$rr, Status> {
                Ok(self.runtime.clone().$rc(request).await?.into_inner())
            } )*
            $( async fn $oc(&self, request: $oq) -> Result<$or, Status> {
                Ok(self.runtime.clone().$oc(request).await?.into_inner())
            } )*
            $( async fn $pc(&self, request: $pq) -> Result<ItemStream<$pr>, Status> {
                Ok(self.runtime.clone().$pc(request).await?.into_inner().boxed())
            } )*
            $( async fn $ic(&self, request: $iq) -> Result<$ir, Status> {
                Ok(self.image.clone().$ic(request).await?.into_inner())
            } )*
            $( async fn $sc(&self, request: $sq) -> Result<ItemStream<$sr>, Status> {
                Ok(self.image.clone().$sc(request).await?.into_inner().boxed())
            } )*
            async fn container_events(&self) -> Result<ItemStream<ContainerEventResponse>, Status> {
                let answer = self.runtime.clone().get_container_events(GetEventsRequest {}).await?;
                Ok(answer.into_inner().boxed())
            }
        }
    };
}
for_each_call!(implement_client);
