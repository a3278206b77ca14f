//! cri-tools' validation suite on a kernel that has all that it asks for.

use std::time::Duration;

use anyhow::{Context, ensure};
use tests::critest::{SPECS, outcomes, verdict};
use vm::Lab;

vm::cases![nothing_fails_and_only_what_is_named_is_skipped];

/// How long critest may take: its specs wait for much, and an emulated processor is slow.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Specs that are skipped here, how many, and why.
const SKIPPED: [(&str, usize, &str); 4] = [
    ("PodSandbox benchmark about operations on PodSandbox", 1, "measured by `make critest-bench`"),
    ("PodSandbox benchmark about start a container from scratch", 1, "measured by `make critest-bench`"),
    ("Container benchmark", 1, "measured by `make critest-bench`"),
    ("Image benchmark", 2, "measured by `make critest-bench`"),
];

async fn nothing_fails_and_only_what_is_named_is_skipped(lab: &Lab) -> anyhow::Result<()> {
    let guest = lab.plain().await?;
    ensure!(
        guest.run("test -f /share/critest/stamp").await?.code == 0,
        "critest is not built: tests/critest/build.sh out/critest out/images/cache"
    );
    // So that no spec finds less of a kernel than we think.
    ensure!(guest.ok("cat /sys/module/apparmor/parameters/enabled").await? == "Y", "no AppArmor");
    let controllers = guest.ok("cat /sys/fs/cgroup/cgroup.controllers").await?;
    for controller in ["cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"] {
        ensure!(controllers.split(' ').any(|found| found == controller), "no {controller} in {controllers}");
    }
    let root = "/nodes/critest";
    let script = format!(
        "mkdir -p {root} && \
         /share/critest/run.sh /share/bin/orlop {root} > {root}/said.log 2>&1; \
         code=$?; [ -s {root}/critest.json ] || {{ tail -n 60 {root}/said.log; exit 1; }}; echo $code"
    );
    let code = guest.ok_within(PATIENCE, &script).await.context("run critest")?;
    let outcomes = outcomes(&guest.ok(&format!("cat {root}/critest.json")).await?)?;
    let count = |state: &str| outcomes.iter().filter(|outcome| outcome.state == state).count();
    let (passed, skipped) = (count("passed"), count("skipped"));
    let failed = outcomes.len() - passed - skipped;
    println!("  critest: {passed} passed, {failed} failed, {skipped} skipped of {} specs", outcomes.len());
    for (specs, count, why) in SKIPPED {
        println!("  skipped: {count} specs {specs:?}: {why}");
    }
    let wrong = verdict(&outcomes, &SKIPPED.map(|(specs, count, _)| (specs, count)), SPECS);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    ensure!(code == "0", "every spec is fine, but critest, or `orlop stop` after it, ended with {code}");
    guest.ok(&format!("rm -rf {root}")).await.map(|_| ())
}
