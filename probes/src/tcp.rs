//! The TCP probe, and how all probes connect.

use std::io;

use tokio::net::TcpStream;

use crate::model::Outcome;
use crate::words;

/// Connects; the error is worded.
pub(crate) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let address = words::address(host, port);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let ips: Vec<_> = match tokio::net::lookup_host((host, port)).await {
        Ok(ips) => ips.collect(),
        Err(_) => return Err(format!("dial tcp: lookup {host}: no such host")),
    };
    let stream = TcpStream::connect(ips.as_slice()).await.map_err(|err| words::dial(&address, &err))?;
    // What is asked is small and waits for an answer.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Opens a connection and closes it.
pub(crate) async fn probe(host: &str, port: u16) -> Outcome {
    match connect(host, port).await {
        Ok(_) => Outcome::Success { message: String::new() },
        Err(message) => Outcome::Failure { message },
    }
}

/// What it is when the time is over.
pub(crate) fn timed_out(host: &str, port: u16) -> Outcome {
    let err = io::Error::from(io::ErrorKind::TimedOut);
    Outcome::Failure { message: words::dial(&words::address(host, port), &err) }
}
