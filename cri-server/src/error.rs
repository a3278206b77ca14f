//! Errors on their way out: one place decides the gRPC code of each.
//!
//! Guarantees: a message is the whole chain, printed once; secrets never get into errors in the first place.

use std::error::Error;

use runtime::{ExecError, RuntimeError, StartError};
use tonic::{Code, Status};

/// The text of an error and its causes.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // A transparent error repeats its cause.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Maps any error of the crates below to a status.
pub fn status(error: impl Error + 'static) -> Status {
    Status::new(code(&error), chain(&error))
}

/// A step that a test may let fail, or wait: on a thread for that.
pub async fn fault(step: &'static str) -> Result<(), Status> {
    if !sys::fault::possible() {
        return Ok(());
    }
    let passed = tokio::task::spawn_blocking(move || sys::fault::point(step)).await;
    let failed = |error: &dyn Error| Status::internal(error.to_string());
    passed.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
}

/// What can never work, whoever asks again.
pub fn invalid(what: impl Into<String>) -> Status {
    Status::invalid_argument(what)
}

fn code(error: &(dyn Error + 'static)) -> Code {
    if let Some(error) = error.downcast_ref::<RuntimeError>() {
        return runtime_code(error);
    }
    match error.downcast_ref::<StartError>() {
        Some(StartError::Runtime(inner)) => return runtime_code(inner),
        // The kubelet tells its users "not found" apart from other failures by the text; the code is the same.
        Some(StartError::NotFound { .. } | StartError::Child { .. }) => return Code::Unknown,
        None => {}
    }
    match error.downcast_ref::<ExecError>() {
        Some(ExecError::Runtime(inner)) => return runtime_code(inner),
        Some(ExecError::NotFound { .. } | ExecError::Child { .. }) => return Code::Unknown,
        Some(ExecError::TimedOut { .. }) => return Code::DeadlineExceeded,
        None => {}
    }
    if let Some(error) = error.downcast_ref::<network::AddError>() {
        use network::AddError as E;
        return match error {
            E::BadId(_) | E::BadPort { .. } => Code::InvalidArgument,
            E::Exhausted { .. } => Code::ResourceExhausted,
            E::PortConflict { .. } | E::PortInUse { .. } => Code::FailedPrecondition,
            E::Closed => Code::Unavailable,
            _ => Code::Internal,
        };
    }
    if let Some(error) = error.downcast_ref::<image::RemoveError>() {
        return match error {
            image::RemoveError::NotFound(_) => Code::NotFound,
            image::RemoveError::InUse { .. } => Code::FailedPrecondition,
            image::RemoveError::Write { .. } | image::RemoveError::Abandoned => Code::Internal,
        };
    }
    if let Some(error) = error.downcast_ref::<image::PullError>() {
        return match error.kind() {
            image::ErrorKind::NotFound => Code::NotFound,
            image::ErrorKind::Unauthorized => Code::PermissionDenied,
            image::ErrorKind::Unavailable => Code::Unavailable,
            image::ErrorKind::Invalid => Code::InvalidArgument,
            image::ErrorKind::NoSpace => Code::ResourceExhausted,
            image::ErrorKind::Internal => Code::Internal,
        };
    }
    match error.downcast_ref::<image::LeaseError>() {
        Some(image::LeaseError::NotFound(_)) => return Code::NotFound,
        Some(image::LeaseError::Artifact { .. }) => return Code::InvalidArgument,
        _ => (),
    }
    if error.is::<image::ReferenceError>() {
        return Code::InvalidArgument;
    }
    Code::Internal
}

fn runtime_code(error: &RuntimeError) -> Code {
    match error {
        RuntimeError::NoSandbox { .. } | RuntimeError::NoContainer { .. } => Code::NotFound,
        RuntimeError::Exists { .. } => Code::AlreadyExists,
        RuntimeError::SandboxNotReady { .. }
        | RuntimeError::WrongState { .. }
        | RuntimeError::NotNow { .. } => Code::FailedPrecondition,
        RuntimeError::Invalid { .. } => Code::InvalidArgument,
        RuntimeError::Timeout { .. } => Code::DeadlineExceeded,
        RuntimeError::Io { .. } | RuntimeError::Keeper { .. } => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_chains() {
        let error =
            RuntimeError::Io { step: "make cgroup /a".into(), source: std::io::Error::other("no space") };
        let seen = status(StartError::Runtime(error));
        assert_eq!((seen.code(), seen.message()), (Code::Internal, "make cgroup /a: no space"));
        let error = RuntimeError::NoContainer { id: "c1".parse().expect("an id") };
        assert_eq!(status(error).code(), Code::NotFound);
        assert_eq!(status(std::fmt::Error).code(), Code::Internal);
    }
}
