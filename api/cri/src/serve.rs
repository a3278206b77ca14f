//! Any [`Cri`] as gRPC services on a unix socket.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::calls::{Cri, ItemStream, for_each_call};
use crate::v1::image_service_server::{ImageService, ImageServiceServer};
use crate::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use crate::v1::*;

/// The largest message either side takes, in bytes. An ExecSync answer may carry 16 MiB of each output.
pub const MESSAGE_LIMIT: usize = 48 << 20;

/// Why serving ended other than by the shutdown.
#[derive(Debug, thiserror::Error)]
#[error("serve CRI on the unix socket")]
pub struct ServeError(#[from] tonic::transport::Error);

/// A [`Cri`] in the shape that tonic's servers want.
#[derive(Clone)]
pub struct Adapter(Arc<dyn Cri>);

/// Both services over one implementation, for a tonic router of the caller's.
pub fn services(cri: Arc<dyn Cri>) -> (RuntimeServiceServer<Adapter>, ImageServiceServer<Adapter>) {
    let adapter = Adapter(cri);
    (
        RuntimeServiceServer::new(adapter.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT),
        ImageServiceServer::new(adapter)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT),
    )
}

/// How long running calls may take to finish once the server shall end. Streams never end by themselves.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves `cri` on `listener` until `shutdown` resolves; running calls then get two seconds to finish.
pub async fn serve(
    cri: Arc<dyn Cri>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (runtime, image) = services(cri);
    let ending = CancellationToken::new();
    let served = tonic::transport::Server::builder()
        .add_service(runtime)
        .add_service(image)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), ending.clone().cancelled_owned());
    let cut_off = async {
        shutdown.await;
        ending.cancel();
        tokio::time::sleep(DRAIN).await;
    };
    // Cancel-safe: whichever loses is dropped, and with it the connections that did not drain.
    tokio::select! {
        result = served => Ok(result?),
        () = cut_off => Ok(()),
    }
}

/// The longest message of an error, in bytes: it travels in a header, and clients close a connection whose headers are
/// too long. What a message repeats of its request may be as long as it likes.
const LONGEST: usize = 4000;

fn short(status: Status) -> Status {
    let message = status.message();
    if message.len() <= LONGEST {
        return status;
    }
    let kept = &message[..message.floor_char_boundary(LONGEST)];
    Status::new(status.code(), format!("{kept}… ({} bytes in all)", message.len()))
}

macro_rules! implement_services {
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
        impl RuntimeService for Adapter {
            $( async fn $rc(&self, request: Request<$rq>) -> Result<Response<$rr>, Status> {
                self.0.$rc(request.into_inner()).await.map(Response::new).map_err(short)
            } )*
            $( async fn $oc(&self, request: Request<$oq>) -> Result<Response<$or>, Status> {
                self.0.$oc(request.into_inner()).await.map(Response::new).map_err(short)
            } )*
            $(
                type $ps = ItemStream<$pr>;
                async fn $pc(&self, request: Request<$pq>) -> Result<Response<Self::$ps>, Status> {
                    self.0.$pc(request.into_inner()).await.map(Response::new).map_err(short)
                }
            )*
            type GetContainerEventsStream = ItemStream<ContainerEventResponse>;
            async fn get_container_events(
                &self,
                _: Request<GetEventsRequest>,
            ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
                self.0.container_events().await.map(Response::new).map_err(short)
            }
        }

        #[async_trait::async_trait]
        impl ImageService for Adapter {
            $( async fn $ic(&self, request: Request<$iq>) -> Result<Response<$ir>, Status> {
                self.0.$ic(request.into_inner()).await.map(Response::new).map_err(short)
            } )*
            $(
                type $ss = ItemStream<$sr>;
                async fn $sc(&self, request: Request<$sq>) -> Result<Response<Self::$ss>, Status> {
                    self.0.$sc(request.into_inner()).await.map(Response::new).map_err(short)
                }
            )*
        }
    };
}
for_each_call!(implement_services);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut() {
        assert_eq!(short(Status::not_found("no such thing")).message(), "no such thing");
        let cut = short(Status::invalid_argument("ä".repeat(100_000)));
        assert_eq!(cut.code(), tonic::Code::InvalidArgument);
        assert!(cut.message().len() < LONGEST + 50 && cut.message().ends_with("… (200000 bytes in all)"));
    }
}
