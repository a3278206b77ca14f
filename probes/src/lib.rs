//! Probes: what to ask a container, what an answer means, and when to ask again.
//!
//! [`Tracker`] is the state machine of one probe of one container start: no clock, no I/O. Its owner
//! asks [`Tracker::due`] when to run the next probe, runs it with [`run`] (or lets [`worker()`] do
//! both), and hands the outcome to [`Tracker::step`].
//!
//! Guarantees: `due` and `step` are pure; `run` ends within the probe's timeout.
//! Assumes: one `Tracker` per container start; a restart begins a new one.

#![forbid(unsafe_code)]

mod model;
pub use model::{Action, Kind, Outcome, Probe, Scheme, Thresholds};

mod tracker;
pub use tracker::{State, Step, Tracker};

mod run;
pub use run::{Exec, ExecError, ExecOutput, Target, run};

mod worker;
pub use worker::{Report, started_ago, worker};

mod http;

mod tcp;

mod grpc;

mod url;

mod words;
