//! What is measured, in which unit, and the budget of each.
//!
//! Guarantees: every measure stands in [`MEASURES`] once, in the order of the table.
//! Assumes: megabytes are 10^6 bytes and kilobytes 10^3, the stricter reading of the budgets.

/// What a value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Seconds.
    Seconds,
    /// Kilobytes.
    Kb,
    /// Megabytes.
    Mb,
    /// Things.
    Count,
}

impl Unit {
    /// How it is written behind a value.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Ms => "ms",
            Unit::Seconds => "s",
            Unit::Kb => "kB",
            Unit::Mb => "MB",
            Unit::Count => "",
        }
    }
}

/// What the median has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// At most this.
    AtMost(f64),
    /// At most this part of what the peer needs in the same run.
    OfPeer(f64),
    /// Only shown.
    None,
}

/// A thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "MEASURES says in words what each is")]
pub enum Measure {
    RunSandbox,
    Create,
    Start,
    PodStart,
    PodStartHost,
    Crowd,
    StopSandbox,
    RemoveSandbox,
    PodEnd,
    Exec,
    List,
    Status,
    ListThousand,
    FilterThousand,
    ListPodsThousand,
    DaemonIdle,
    DaemonCrowd,
    HelpersIdle,
    HelpersCrowd,
    PodMemory,
    PodProcesses,
    ServerStart,
    ServerRestart,
    ServerRecovery,
    CreateToReady,
    CrowdToReady,
    ServerIdle,
    ServerCrowd,
    Pull,
    PullPeak,
    Binary,
}

/// A measure's row: heading of its group, words, unit, budget.
#[derive(Debug)]
pub struct Row {
    /// Which measure.
    pub measure: Measure,
    /// What it says in the table.
    pub what: &'static str,
    /// Unit of its values.
    pub unit: Unit,
    /// What its median has to be.
    pub budget: Budget,
}

const fn row(measure: Measure, what: &'static str, unit: Unit, budget: Budget) -> Row {
    Row { measure, what, unit, budget }
}

/// Every measure, in the order in which they are printed.
pub const MEASURES: &[Row] = &[
    row(Measure::RunSandbox, "RunPodSandbox, own network", Unit::Ms, Budget::None),
    row(Measure::Create, "CreateContainer, cached image", Unit::Ms, Budget::None),
    row(Measure::Start, "StartContainer", Unit::Ms, Budget::None),
    row(Measure::PodStart, "pod start: the sum of the three", Unit::Ms, Budget::AtMost(8.0)),
    row(Measure::PodStartHost, "pod start with host network", Unit::Ms, Budget::None),
    row(Measure::Crowd, "many pods by 2 clients, all started", Unit::Seconds, Budget::AtMost(0.3)),
    row(Measure::StopSandbox, "StopPodSandbox", Unit::Ms, Budget::None),
    row(Measure::RemoveSandbox, "RemovePodSandbox", Unit::Ms, Budget::None),
    row(Measure::PodEnd, "pod stop and remove: the sum of the two", Unit::Ms, Budget::AtMost(12.0)),
    row(Measure::Exec, "ExecSync `true`", Unit::Ms, Budget::AtMost(1.5)),
    row(Measure::List, "ListContainers with many pods", Unit::Ms, Budget::AtMost(0.15)),
    row(Measure::Status, "ContainerStatus with many pods", Unit::Ms, Budget::AtMost(0.15)),
    row(Measure::ListThousand, "ListContainers with 1000 containers", Unit::Ms, Budget::AtMost(5.0)),
    row(
        Measure::FilterThousand,
        "ListContainers that finds none of 1000 containers",
        Unit::Ms,
        Budget::AtMost(5.0),
    ),
    row(
        Measure::ListPodsThousand,
        "ListPodSandbox with 1000 containers in 10 pods",
        Unit::Ms,
        Budget::AtMost(5.0),
    ),
    row(Measure::DaemonIdle, "CRI daemon, RSS idle", Unit::Mb, Budget::AtMost(15.0)),
    row(Measure::DaemonCrowd, "CRI daemon, RSS with many pods", Unit::Mb, Budget::AtMost(20.0)),
    row(Measure::HelpersIdle, "keeper (shims and pauses), RSS idle", Unit::Mb, Budget::None),
    row(
        Measure::HelpersCrowd,
        "keeper (shims and pauses), RSS with many pods",
        Unit::Mb,
        Budget::AtMost(3.0),
    ),
    row(
        Measure::PodMemory,
        "a pod adds beyond its processes, PSS, daemon aside",
        Unit::Kb,
        Budget::AtMost(50.0),
    ),
    row(Measure::PodProcesses, "processes that a pod adds to its own", Unit::Count, Budget::AtMost(0.0)),
    row(Measure::ServerStart, "`orlop server` first start to node Ready", Unit::Ms, Budget::AtMost(1000.0)),
    row(Measure::ServerRestart, "`orlop server` restart to node Ready", Unit::Ms, Budget::AtMost(1000.0)),
    row(
        Measure::ServerRecovery,
        "`orlop server` killed, its start to node Ready with 10 pods running",
        Unit::Ms,
        Budget::AtMost(1000.0),
    ),
    row(Measure::CreateToReady, "pod created in the API to Ready", Unit::Ms, Budget::AtMost(100.0)),
    row(Measure::CrowdToReady, "many pods created in the API, all Ready", Unit::Seconds, Budget::None),
    row(Measure::ServerIdle, "`orlop server`, RSS idle", Unit::Mb, Budget::AtMost(80.0)),
    row(Measure::ServerCrowd, "`orlop server`, RSS with many pods", Unit::Mb, Budget::None),
    row(Measure::Pull, "pull and unpack 35000 files from loopback", Unit::Seconds, Budget::OfPeer(0.6)),
    row(Measure::PullPeak, "CRI daemon, peak RSS while pulling", Unit::Mb, Budget::AtMost(50.0)),
    row(Measure::Binary, "size of the binary", Unit::Mb, Budget::AtMost(40.0)),
];

/// What many pods over CRI give.
pub const OF_A_CROWD: &[Measure] = &[
    Measure::Crowd,
    Measure::List,
    Measure::Status,
    Measure::DaemonCrowd,
    Measure::HelpersCrowd,
    Measure::PodMemory,
    Measure::PodProcesses,
];

/// What a thousand containers over CRI give.
pub const OF_A_THOUSAND: &[Measure] =
    &[Measure::ListThousand, Measure::FilterThousand, Measure::ListPodsThousand];

/// What is asked of both runtimes over CRI.
pub fn over_cri() -> Vec<Measure> {
    let cluster = Measure::ServerStart as usize..=Measure::ServerCrowd as usize;
    let all = MEASURES.iter().map(|row| row.measure);
    all.filter(|measure| !cluster.contains(&(*measure as usize)) && *measure != Measure::Binary).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_measures_and_complete() {
        let listed: Vec<_> = MEASURES.iter().map(|row| row.measure as usize).collect();
        assert_eq!(listed, (0..=Measure::Binary as usize).collect::<Vec<_>>());
    }

    #[test]
    fn over_cri_is_what_is_neither_of_the_cluster_nor_of_the_binary() {
        let over_cri = over_cri();
        assert!(over_cri.contains(&Measure::RunSandbox) && over_cri.contains(&Measure::PullPeak));
        assert!(!over_cri.contains(&Measure::CreateToReady) && !over_cri.contains(&Measure::Binary));
    }
}
