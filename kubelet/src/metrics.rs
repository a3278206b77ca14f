//! The kubelet's own counters, in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident, $name:literal, $help:literal;)*) => {
        /// What a kubelet counts.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[$doc])* pub $field: AtomicU64,)*
        }

        impl Metrics {
            /// All of them as text.
            pub fn render(&self) -> String {
                let mut out = String::new();
                $(
                    let kind = if $name.ends_with("_total") { "counter" } else { "gauge" };
                    let value = self.$field.load(Ordering::Relaxed);
                    let _ = writeln!(out, "# HELP {0} {1}\n# TYPE {0} {kind}\n{0} {value}", $name, $help);
                )*
                out
            }
        }
    };
}

counters! {
    /// Pods that have a task.
    pods, "kubelet_desired_pods", "Pods that this kubelet takes care of";
    /// Rounds of pods' tasks.
    rounds, "kubelet_pod_rounds_total", "Observations and plans made for pods";
    /// Rounds that only the resync caused, and that found something to do.
    resync_finds, "kubelet_resync_finds_total", "Resyncs that found work no event had told of; should stay 0";
    /// Container events received.
    container_events, "kubelet_container_events_total", "Container events received from the runtime";
    /// Times the event stream had to be opened anew.
    event_stream_restarts, "kubelet_container_event_stream_restarts_total", "Times the runtime's event stream broke";
    /// Containers started.
    containers_started, "kubelet_started_containers_total", "Containers started";
    /// Container starts that failed.
    container_start_errors, "kubelet_started_containers_errors_total", "Container starts that failed";
    /// Sandboxes made.
    sandboxes_started, "kubelet_started_pods_total", "Pod sandboxes made";
    /// Sandboxes that could not be made.
    sandbox_errors, "kubelet_started_pods_errors_total", "Pod sandboxes that could not be made";
    /// Status patches written.
    status_writes, "kubelet_pod_status_writes_total", "Pod status patches written";
    /// Status patches that failed and are retried.
    status_write_errors, "kubelet_pod_status_write_errors_total", "Pod status patches that failed";
    /// Leases renewed.
    lease_renewals, "kubelet_lease_renewals_total", "Renewals of the node's lease";
    /// Log files rotated.
    log_rotations, "kubelet_log_rotations_total", "Container log files rotated";
    /// Probe outcomes that were not successes.
    probe_failures, "kubelet_probe_failures_total", "Probe runs that failed";
    /// Images removed to make space, or for their age.
    images_removed, "kubelet_image_garbage_collected_total", "Images removed because of a full disk or their age";
    /// Events that could not be written.
    events_dropped, "kubelet_events_dropped_total", "Events that could not be written";
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
