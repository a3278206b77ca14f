//! The gRPC probe: `grpc.health.v1.Health/Check`, without TLS.

use std::time::Duration;

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::model::Outcome;
use crate::words;

/// Whom the probe asks about.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// The answer.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl ServingStatus {
    fn name(self) -> &'static str {
        match self {
            ServingStatus::Unknown => "UNKNOWN",
            ServingStatus::Serving => "SERVING",
            ServingStatus::NotServing => "NOT_SERVING",
            ServingStatus::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

/// Connects and asks, each within the time that is left of `timeout`.
pub(crate) async fn probe(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let address = words::address(host, port);
    let deadline = tokio::time::Instant::now() + timeout;
    let failed = |message| Outcome::Failure { message };
    let channel = match tokio::time::timeout_at(deadline, connect(&address)).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(why)) => return failed(format!("error: failed to connect service at {address:?}: {why}")),
        Err(_) => {
            let within = words::duration(timeout);
            return failed(format!(
                "timeout: failed to connect service {address:?} within {within}: context deadline exceeded"
            ));
        }
    };
    let answer = tokio::time::timeout_at(deadline, check(channel, service)).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")));
    match answer {
        Ok(response) => match ServingStatus::try_from(response.status) {
            Ok(ServingStatus::Serving) => Outcome::Success { message: "service healthy".to_owned() },
            status => {
                let name =
                    status.map_or_else(|_| response.status.to_string(), |status| status.name().to_owned());
                failed(format!("service unhealthy (responded with {name:?})"))
            }
        },
        Err(status) => failed(word(&status, timeout)),
    }
}

fn word(status: &Status, timeout: Duration) -> String {
    match status.code() {
        Code::Unimplemented => format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        ),
        Code::DeadlineExceeded => {
            format!("timeout: health rpc did not complete within {}", words::duration(timeout))
        }
        code => {
            format!("error: health rpc probe failed: rpc error: code = {code:?} desc = {}", status.message())
        }
    }
}

async fn connect(address: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent(words::USER_AGENT))
        .map_err(|err| words::root_cause(&err))?;
    endpoint.connect().await.map_err(|err| {
        let mut cause: &(dyn std::error::Error + 'static) = &err;
        loop {
            if let Some(io) = cause.downcast_ref::<std::io::Error>() {
                return words::dial(address, io);
            }
            match cause.source() {
                Some(next) => cause = next,
                None => return cause.to_string(),
            }
        }
    })
}

async fn check(channel: Channel, service: &str) -> Result<HealthCheckResponse, Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|err| Status::unavailable(words::root_cause(&err)))?;
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    client.unary(request, path, codec).await.map(tonic::Response::into_inner)
}
