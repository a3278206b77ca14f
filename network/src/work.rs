//! Work that goes on when the caller does not wait for it.

use std::error::Error;
use std::future::Future;
use std::panic::resume_unwind;

use tokio::task::JoinError;

/// Runs to its end even if the caller is dropped; `None` when the runtime ends.
pub(crate) async fn task<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Option<T> {
    finished(tokio::spawn(future).await)
}

/// Runs on a blocking thread; `None` when the runtime ends.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    finished(tokio::task::spawn_blocking(work).await)
}

fn finished<T>(outcome: Result<T, JoinError>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(err) if err.is_panic() => resume_unwind(err.into_panic()),
        Err(_) => None,
    }
}

/// The error with its causes, for a status text.
pub(crate) fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut next = err.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
