//! The words that Kubernetes users know from the kubelet: pure functions.

use std::error::Error;
use std::io;
use std::time::Duration;

/// How the prober names itself.
pub(crate) const USER_AGENT: &str = "kube-probe/1.36";

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn address(host: &str, port: u16) -> String {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Why a connection to `address` did not come about.
pub(crate) fn dial(address: &str, err: &io::Error) -> String {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut};
    let why = match err.kind() {
        ConnectionRefused => "connect: connection refused".to_owned(),
        ConnectionReset => "connect: connection reset by peer".to_owned(),
        HostUnreachable => "connect: no route to host".to_owned(),
        NetworkUnreachable => "connect: network is unreachable".to_owned(),
        TimedOut => "i/o timeout".to_owned(),
        _ => format!("connect: {err}"),
    };
    format!("dial tcp {address}: {why}")
}

/// The last cause in an error's chain, for libraries whose own messages say little.
pub(crate) fn root_cause(err: &(dyn Error + 'static)) -> String {
    let mut cause = err;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// A duration as Go writes it: `1s`, `1.5s`, `250ms`, `1m30s`.
pub(crate) fn duration(time: Duration) -> String {
    let decimal = |value: f64| {
        let text = format!("{value:.6}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match time.as_secs() {
        0 if time.is_zero() => "0s".to_owned(),
        0 => format!("{}ms", decimal(time.as_secs_f64() * 1000.0)),
        seconds @ ..60 => format!("{}s", decimal(seconds as f64 + f64::from(time.subsec_nanos()) / 1e9)),
        seconds => {
            let rest = decimal((seconds % 60) as f64 + f64::from(time.subsec_nanos()) / 1e9);
            match seconds / 3600 {
                0 => format!("{}m{rest}s", seconds / 60),
                hours => format!("{hours}h{}m{rest}s", seconds % 3600 / 60),
            }
        }
    }
}

/// At most `limit` bytes of an output as text, cut between characters.
pub(crate) fn clip(output: &[u8], limit: usize) -> String {
    String::from_utf8_lossy(&output[..output.len().min(limit)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let written = |millis| duration(Duration::from_millis(millis));
        assert_eq!(
            [0, 250, 1000, 1500, 59_999, 60_000, 90_500, 3_600_000].map(written),
            ["0s", "250ms", "1s", "1.5s", "59.999s", "1m0s", "1m30.5s", "1h0m0s"]
        );
    }

    #[test]
    fn addresses_of_both_families() {
        assert_eq!(address("10.0.0.1", 80), "10.0.0.1:80");
        assert_eq!(address("fd42::1", 80), "[fd42::1]:80");
        assert_eq!(address("[fd42::1]", 80), "[fd42::1]:80");
    }
}
