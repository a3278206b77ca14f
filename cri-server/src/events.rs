//! GetContainerEvents: the runtime's events with the statuses right after them.

use std::sync::Arc;

use cri_api::ItemStream;
use cri_api::v1::{ContainerEventResponse, ContainerEventType as Kind};
use futures::StreamExt;
use runtime::Event;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged;
use tonic::Status;

use crate::server::Inner;
use crate::{sandbox, view};

/// What an event is called, whose it is, and in which sandbox. Pure.
fn translate(event: &Event) -> (Kind, String, String) {
    let of_sandbox = |kind, id: &runtime::SandboxId| (kind, id.to_string(), id.to_string());
    match event {
        Event::SandboxCreated(id) => of_sandbox(Kind::ContainerStartedEvent, id),
        Event::SandboxStopped(id) => of_sandbox(Kind::ContainerStoppedEvent, id),
        Event::SandboxRemoved(id) => of_sandbox(Kind::ContainerDeletedEvent, id),
        Event::ContainerCreated { id, sandbox } => {
            (Kind::ContainerCreatedEvent, id.to_string(), sandbox.to_string())
        }
        Event::ContainerStarted { id, sandbox } => {
            (Kind::ContainerStartedEvent, id.to_string(), sandbox.to_string())
        }
        Event::ContainerStopped { id, sandbox, .. } => {
            (Kind::ContainerStoppedEvent, id.to_string(), sandbox.to_string())
        }
        Event::ContainerRemoved { id, sandbox } => {
            (Kind::ContainerDeletedEvent, id.to_string(), sandbox.to_string())
        }
    }
}

/// All events from now on.
pub(crate) fn events(inner: Arc<Inner>) -> ItemStream<ContainerEventResponse> {
    let received = BroadcastStream::new(inner.runtime.subscribe());
    let mut lost = false;
    received
        .take_while(move |event| {
            let go_on = !lost;
            lost |= event.is_err();
            std::future::ready(go_on)
        })
        .map(move |event| match event {
            Ok(event) => Ok(respond(&inner, &event)),
            Err(Lagged(missed)) => Err(Status::data_loss(format!(
                "{missed} events were missed: list containers anew, then watch again"
            ))),
        })
        .boxed()
}

fn respond(inner: &Inner, event: &Event) -> ContainerEventResponse {
    let (kind, container_id, sandbox_id) = translate(event);
    let at = match event {
        Event::ContainerStopped { exit, .. } => exit.finished_at,
        _ => jiff::Timestamp::now(),
    };
    let sandbox = sandbox::sandbox_id(&sandbox_id).ok().and_then(|id| inner.runtime.sandbox(&id));
    let status = sandbox.zip(inner.index.sandbox(&sandbox_id));
    ContainerEventResponse {
        container_id,
        container_event_type: kind as i32,
        created_at: view::nanos(at),
        pod_sandbox_status: status.map(|(sandbox, meta)| view::sandbox_status(&sandbox, &meta)),
        containers_statuses: inner.statuses_in(&sandbox_id),
    }
}
