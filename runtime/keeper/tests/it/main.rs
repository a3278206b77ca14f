//! The keeper against the real kernel. Needs root.

#[path = "../common/mod.rs"]
mod common;

mod attach;
mod exec;
mod launch;
mod survive;

/// Runs an async test on one thread, if it can run here.
macro_rules! keeper_test {
    ($(#[$meta:meta])* $name:ident, $fixture:ident, $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            if let Some(why) = crate::common::obstacle() {
                println!("skipped: {why}");
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                #[allow(unused_mut)]
                let mut $fixture = crate::common::Fixture::new().await;
                $body
            });
        }
    };
}
pub(crate) use keeper_test;
