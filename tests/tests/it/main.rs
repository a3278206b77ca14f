//! The built binary, seen from outside: kubectl, crictl, curl, signals.

mod bad_input;
mod crictl;
mod deployment;
mod images;
mod join;
mod kubectl;
mod life;
mod linux;
mod manifests;
mod node;
mod operate;
mod pod_fields;
mod runtime_class;
mod survival;
mod users;
mod volumes;

/// Ends a test early, and says so, where scenarios can't run.
macro_rules! needs_root {
    () => {
        if !tests::can_run() {
            return Ok(());
        }
    };
}
pub(crate) use needs_root;
