//! The store's tests: one contract for every engine, and what only the embedded one promises.

mod contract;
mod crash;
mod embedded;
