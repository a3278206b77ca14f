//! Known holes of other runtimes, tried on the built binary: one test for each CVE, named after it.
//!
//! Each test makes the attack for real: hostile images, hostile programs (`attack.c`), races of a thousand
//! rounds. Whatever it is about, [`world::World::end`] compares what the host looked like before: files that
//! attacks aim at, and a canary directory beside the node's.
//!
//! docs/SECURITY.md has the table: what the hole was, what shuts it here, which test says so.

mod archive;
mod bounds;
mod checkpoint;
mod descriptors;
mod devices;
mod host;
mod layers;
mod mounts;
mod races;
mod races_proc;
mod rights;
mod socket;
mod users;
mod world;

/// Ends a test early, and says so, where scenarios can't run.
macro_rules! needs_root {
    () => {
        if !tests::can_run() {
            return Ok(());
        }
    };
}
pub(crate) use needs_root;
