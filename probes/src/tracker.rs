//! The state machine of one probe of one container start.
//!
//! The rules, as Kubernetes has them:
//! - Before its first verdict a liveness probe counts as passed, a readiness probe as failed, and a startup
//!   probe as not yet passed.
//! - The first probe runs `initial_delay` after the start, the following ones every `period`.
//! - While the container's startup probe has not passed, liveness and readiness probes do not run.
//! - A startup probe that has passed never runs again.
//! - A verdict changes only after `failure` (or `success`) equal outcomes in a row; an outcome that says
//!   nothing ([`Outcome::Unknown`]) is not counted.
//! - A liveness or startup probe that has failed asks for the container's end once, and then rests.
//!
//! Guarantees: pure; times are durations since the container's start, given by the caller.

use std::time::Duration;

use crate::model::{Kind, Outcome, Thresholds};

/// What the probe says about its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No verdict yet.
    Unknown,
    /// Passed.
    Passed,
    /// Failed.
    Failed,
}

/// What one outcome leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing changed.
    Same,
    /// The verdict is new: update the pod's status.
    Changed(State),
    /// The container is to be killed (the restart policy decides what follows). Said once.
    Kill,
}

/// The memory of one probe. Make a new one for each container start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracker {
    kind: Kind,
    thresholds: Thresholds,
    state: State,
    /// The last counted outcome, and how many of it came in a row.
    run: Option<(bool, u32)>,
    /// When the last probe ran, since the container's start.
    last: Option<Duration>,
}

impl Tracker {
    /// The probe of a container that has just started.
    pub fn new(kind: Kind, thresholds: Thresholds) -> Tracker {
        let thresholds = Thresholds {
            success: if kind == Kind::Readiness { thresholds.success.max(1) } else { 1 },
            failure: thresholds.failure.max(1),
            period: thresholds.period.max(Duration::from_millis(1)),
            ..thresholds
        };
        Tracker { kind, thresholds, state: State::Unknown, run: None, last: None }
    }

    /// The probe of a container that has been running while nobody watched (the daemon was restarted):
    /// `passed` is the verdict that the pod's status shows. It stays until probes say otherwise.
    pub fn resume(kind: Kind, thresholds: Thresholds, passed: bool) -> Tracker {
        let state = if passed { State::Passed } else { State::Unknown };
        Tracker { state, ..Tracker::new(kind, thresholds) }
    }

    /// Which probe this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The verdict.
    pub fn state(&self) -> State {
        self.state
    }

    /// What the verdict means for the pod now: ready, alive, or started.
    pub fn passed(&self) -> bool {
        match (self.kind, self.state) {
            (_, State::Passed) => true,
            (Kind::Liveness, State::Unknown) => true,
            (_, State::Unknown | State::Failed) => false,
        }
    }

    /// When the next probe is to run, since the container's start; `None` while it rests: `started` says
    /// whether the container's startup probe has passed (true if it has none).
    pub fn due(&self, started: bool) -> Option<Duration> {
        let rests = match self.kind {
            Kind::Startup => self.state != State::Unknown,
            Kind::Liveness => !started || self.state == State::Failed,
            Kind::Readiness => !started,
        };
        if rests {
            return None;
        }
        Some(match self.last {
            None => self.thresholds.initial_delay,
            Some(last) => last + self.thresholds.period,
        })
    }

    /// Takes the outcome of a probe that began at `at`, a duration since the container's start.
    pub fn step(&mut self, outcome: &Outcome, at: Duration) -> Step {
        self.last = Some(at);
        if matches!(outcome, Outcome::Unknown { .. }) {
            return Step::Same;
        }
        let success = outcome.is_success();
        let count = match self.run {
            Some((last, count)) if last == success => count.saturating_add(1),
            _ => 1,
        };
        self.run = Some((success, count));
        let (state, needed) = match success {
            true => (State::Passed, self.thresholds.success),
            false => (State::Failed, self.thresholds.failure),
        };
        if count < needed || self.state == state {
            return Step::Same;
        }
        self.state = state;
        match (self.kind, state) {
            (Kind::Startup | Kind::Liveness, State::Failed) => Step::Kill,
            _ => Step::Changed(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// Plays outcomes (`+` success, `-` failure, `!` warning, `?` unknown), one each period of 10 s after a delay
    /// of 5 s, and writes what each led to: `.` nothing, `P` passed, `F` failed, `K` kill; a `|` where it rests.
    fn check(kind: Kind, success: u32, failure: u32, outcomes: &str, expected: Expect) {
        let thresholds =
            Thresholds { initial_delay: Duration::from_secs(5), success, failure, ..Thresholds::default() };
        let mut tracker = Tracker::new(kind, thresholds);
        let before = tracker.passed();
        let mut written = String::new();
        for outcome in outcomes.chars() {
            let Some(due) = tracker.due(true) else {
                written.push('|');
                break;
            };
            let message = String::new();
            let outcome = match outcome {
                '+' => Outcome::Success { message },
                '!' => Outcome::Warning { message },
                '-' => Outcome::Failure { message },
                _ => Outcome::Unknown { message },
            };
            written.push(match tracker.step(&outcome, due) {
                Step::Same => '.',
                Step::Changed(State::Passed) => 'P',
                Step::Changed(_) => 'F',
                Step::Kill => 'K',
            });
        }
        expected.assert_eq(&format!("{before} {written} {}", tracker.passed()));
    }

    #[test]
    fn readiness_goes_and_comes() {
        check(Kind::Readiness, 1, 3, "+--+---+", expect!["false P.....FP true"]);
        check(Kind::Readiness, 2, 1, "+++-++", expect!["false .P.F.P true"]);
        check(Kind::Readiness, 1, 3, "---", expect!["false ..F false"]);
        check(Kind::Readiness, 1, 1, "!-", expect!["false PF false"]);
        check(Kind::Readiness, 0, 0, "+-", expect!["false PF false"]);
    }

    #[test]
    fn liveness_kills_once() {
        check(Kind::Liveness, 1, 3, "--+---+", expect!["true ..P..K| false"]);
        check(Kind::Liveness, 5, 1, "+-+", expect!["true PK| false"]);
        check(Kind::Liveness, 1, 2, "-?-", expect!["true ..K false"]);
        check(Kind::Liveness, 1, 1, "???", expect!["true ... true"]);
    }

    #[test]
    fn startup_ends_either_way() {
        check(Kind::Startup, 3, 3, "--+-", expect!["false ..P| true"]);
        check(Kind::Startup, 1, 3, "----", expect!["false ..K| false"]);
    }

    #[test]
    fn probes_are_due_by_the_clock_of_the_container() {
        let seconds = Duration::from_secs;
        let thresholds = Thresholds { initial_delay: seconds(5), ..Thresholds::default() };
        let mut tracker = Tracker::new(Kind::Liveness, thresholds);
        assert_eq!(tracker.due(false), None);
        assert_eq!(tracker.due(true), Some(seconds(5)));
        let success = Outcome::Success { message: String::new() };
        tracker.step(&success, seconds(7));
        assert_eq!(tracker.due(true), Some(seconds(17)));
        // A period of zero does not spin.
        let mut tracker = Tracker::new(Kind::Liveness, Thresholds { period: Duration::ZERO, ..thresholds });
        tracker.step(&success, seconds(7));
        assert!(tracker.due(true).unwrap() > seconds(7));
    }

    #[test]
    fn a_restarted_daemon_keeps_the_verdict() {
        let readiness = |passed| Tracker::resume(Kind::Readiness, Thresholds::default(), passed);
        assert!(readiness(true).passed() && !readiness(false).passed());
        let failure = Outcome::Failure { message: String::new() };
        let mut tracker = readiness(true);
        let steps: Vec<Step> = (0..3).map(|n| tracker.step(&failure, Duration::from_secs(n))).collect();
        assert_eq!(steps, [Step::Same, Step::Same, Step::Changed(State::Failed)]);
        // A container that had started does not have to start again.
        assert_eq!(Tracker::resume(Kind::Startup, Thresholds::default(), true).due(true), None);
    }
}
