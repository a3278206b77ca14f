//! The one list of CRI calls, and the trait made from it.

use std::pin::Pin;

use futures::Stream;
use futures::StreamExt;
use tonic::Status;

use crate::v1::*;

/// A stream of answers, each an item or the error that ended it.
pub type ItemStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

/// How many items the default `stream_*` calls put in one answer.
pub const PIECE: usize = 128;

/// Hands the list of calls to the macro named by `$then`.
///
/// `unary` calls must be implemented. `optional` ones are refused by default. `pieces` are list calls
/// whose answer is streamed: by default the plain list call is made once and its items are sent in pieces.
macro_rules! for_each_call {
    ($then:ident) => {
        $then! {
            runtime {
                unary {
                    /// Name and version of the runtime, and of the API it speaks.
                    version(VersionRequest) -> VersionResponse;
                    /// Makes and starts a sandbox. A retry with the same metadata gives the first one's id.
                    run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
                    /// Kills what runs in a sandbox and takes its network down. Idempotent.
                    stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
                    /// Removes a sandbox with all its containers, by force. Idempotent.
                    remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
                    /// One sandbox. `NOT_FOUND` if there is none of that id.
                    pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
                    /// The sandboxes that a filter lets through.
                    list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
                    /// Makes a container in a sandbox without starting it.
                    create_container(CreateContainerRequest) -> CreateContainerResponse;
                    /// Starts a created container.
                    start_container(StartContainerRequest) -> StartContainerResponse;
                    /// Stops a container: its stop signal, then after `timeout` seconds SIGKILL. Idempotent.
                    stop_container(StopContainerRequest) -> StopContainerResponse;
                    /// Removes a container, by force if it runs. Idempotent.
                    remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
                    /// The containers that a filter lets through.
                    list_containers(ListContainersRequest) -> ListContainersResponse;
                    /// One container. `NOT_FOUND` if there is none of that id.
                    container_status(ContainerStatusRequest) -> ContainerStatusResponse;
                    /// Changes the limits of a created or running container.
                    update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
                    /// Opens the log file anew, after a rotation moved it away.
                    reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
                    /// Runs a command in a container and returns its output. `timeout` in seconds, 0: none.
                    exec_sync(ExecSyncRequest) -> ExecSyncResponse;
                    /// Prepares a streamed command; the answer is a single-use URL.
                    exec(ExecRequest) -> ExecResponse;
                    /// Prepares streams to a container's main process; the answer is a single-use URL.
                    attach(AttachRequest) -> AttachResponse;
                    /// Prepares forwarding to ports of a sandbox; the answer is a single-use URL.
                    port_forward(PortForwardRequest) -> PortForwardResponse;
                    /// What one container uses. `NOT_FOUND` if there is none of that id.
                    container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
                    /// What the containers that a filter lets through use.
                    list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
                    /// What one sandbox and its containers use. `NOT_FOUND` if there is none of that id.
                    pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
                    /// What the sandboxes that a filter lets through use.
                    list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
                    /// Tells the runtime what the kubelet learned, for example the node's pod CIDR.
                    update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
                    /// Whether runtime and network are ready, and what the handlers can do.
                    status(StatusRequest) -> StatusResponse;
                    /// What the kubelet should adopt from the runtime: the cgroup driver.
                    runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
                }
                optional {
                    /// Writes a running container's state to a file.
                    checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
                    /// The metrics that `list_pod_sandbox_metrics` will give.
                    list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
                    /// Metrics of every sandbox in cAdvisor's names.
                    list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
                    /// Changes the limits of a whole sandbox.
                    update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
                }
                pieces {
                    /// `list_pod_sandbox`, streamed.
                    stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse { pod_sandboxes }
                        as StreamPodSandboxesStream
                        from list_pod_sandbox(ListPodSandboxRequest { filter }) { items };
                    /// `list_containers`, streamed.
                    stream_containers(StreamContainersRequest) -> StreamContainersResponse { containers }
                        as StreamContainersStream
                        from list_containers(ListContainersRequest { filter }) { containers };
                    /// `list_container_stats`, streamed.
                    stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse { container_stats }
                        as StreamContainerStatsStream
                        from list_container_stats(ListContainerStatsRequest { filter }) { stats };
                    /// `list_pod_sandbox_stats`, streamed.
                    stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse { pod_sandbox_stats }
                        as StreamPodSandboxStatsStream
                        from list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter }) { stats };
                    /// `list_pod_sandbox_metrics`, streamed.
                    stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
                        as StreamPodSandboxMetricsStream
                        from list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}) { pod_metrics };
                }
            }
            image {
                unary {
                    /// The images that a filter lets through; all without one.
                    list_images(ListImagesRequest) -> ListImagesResponse;
                    /// One image; the answer's `image` is absent if there is none of that name.
                    image_status(ImageStatusRequest) -> ImageStatusResponse;
                    /// Pulls an image; the answer is its id.
                    pull_image(PullImageRequest) -> PullImageResponse;
                    /// Removes an image with all its names. Idempotent.
                    remove_image(RemoveImageRequest) -> RemoveImageResponse;
                    /// What images and writable layers take on disk.
                    image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
                }
                pieces {
                    /// `list_images`, streamed.
                    stream_images(StreamImagesRequest) -> StreamImagesResponse { images }
                        as StreamImagesStream
                        from list_images(ListImagesRequest { filter }) { images };
                }
            }
        }
    };
}
pub(crate) use for_each_call;

macro_rules! define_trait {
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
        /// Every call of the CRI's RuntimeService and ImageService.
        ///
        /// Errors are gRPC statuses: `NOT_FOUND` for unknown ids, `INVALID_ARGUMENT` for what can never
        /// work, `UNIMPLEMENTED` for what this runtime does not do, `DEADLINE_EXCEEDED` for time-outs.
        #[async_trait::async_trait]
        pub trait Cri: Send + Sync + 'static {
            $( $(#[$rm])* async fn $rc(&self, request: $rq) -> Result<$rr, Status>; )*
            $( $(#[$im])* async fn $ic(&self, request: $iq) -> Result<$ir, Status>; )*

            /// What happens to containers from now on (`GetContainerEvents`). The stream ends with the
            /// runtime, or with `DATA_LOSS` if the reader was too slow to be told everything: list anew then.
            async fn container_events(&self) -> Result<ItemStream<ContainerEventResponse>, Status>;

            $(
                $(#[$om])*
                ///
                /// Refused unless the implementation overrides it.
                async fn $oc(&self, _request: $oq) -> Result<$or, Status> {
                    Err(refused(stringify!($oc)))
                }
            )*
            $(
                $(#[$pm])*
                async fn $pc(&self, request: $pq) -> Result<ItemStream<$pr>, Status> {
                    let $pq { $($pi)? } = request;
                    let answer = self.$pl($plq { $($pi)? }).await?;
                    Ok(pieces(answer.$po, |$pf| $pr { $pf }))
                }
            )*
            $(
                $(#[$sm])*
                async fn $sc(&self, request: $sq) -> Result<ItemStream<$sr>, Status> {
                    let $sq { $($si)? } = request;
                    let answer = self.$sl($slq { $($si)? }).await?;
                    Ok(pieces(answer.$so, |$sf| $sr { $sf }))
                }
            )*
        }
    };
}
for_each_call!(define_trait);

/// The refusal of a call that an implementation leaves out.
fn refused(call: &str) -> Status {
    Status::unimplemented(format!("this runtime does not support the CRI call {call}"))
}

/// Sends `items` in answers of at most [`PIECE`] items; no items, no answer.
fn pieces<T, A>(items: Vec<T>, answer: impl Fn(Vec<T>) -> A + Send + 'static) -> ItemStream<A>
where
    T: Send + 'static,
    A: Send + 'static,
{
    futures::stream::iter(items).chunks(PIECE).map(move |piece| Ok(answer(piece))).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_lists_are_sent_in_pieces() {
        let sent: Vec<usize> = pieces((0..PIECE * 2 + 1).collect(), |piece| piece.len())
            .map(|answer| answer.expect("never fails"))
            .collect()
            .await;
        assert_eq!(sent, [PIECE, PIECE, 1]);
        assert_eq!(pieces(Vec::<u8>::new(), |piece| piece).count().await, 0);
    }
}
