//! critest, the validation suite of cri-tools, against `orlop cri`.
//!
//! Guarantees: a spec that fails, or is skipped and not named in [`EXEMPTIONS`], fails the run; so does an exempted one
//! that ran, and a suite that is not as large as expected: nothing drops out unseen.
//! Assumes: `tests/critest/build.sh` made the directory that `ORLOP_TEST_CRITEST` names.

mod figures;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::{Node, NodeOptions, Registry, command, run};

/// How many specs the pinned release has on Linux without SELinux.
pub const SPECS: usize = 122;

/// Specs that may, and then must, be skipped.
#[derive(Debug)]
pub struct Exemption {
    /// The beginning of the specs' names.
    pub specs: &'static str,
    /// How many there are.
    pub count: usize,
    /// Why they are not run.
    pub why: &'static str,
    /// Whether that is so here.
    pub holds: fn() -> bool,
    /// What to tell critest so that it leaves them out (a regular expression), if it would not find out.
    pub pattern: Option<&'static str>,
}

/// Every reason that we accept.
pub const EXEMPTIONS: [Exemption; 6] = [
    benchmark("PodSandbox benchmark about operations on PodSandbox"),
    benchmark("PodSandbox benchmark about start a container from scratch"),
    benchmark("Container benchmark"),
    Exemption { count: 2, ..benchmark("Image benchmark") },
    Exemption {
        specs: "AppArmor",
        count: 9,
        why: "the kernel runs without AppArmor",
        holds: || !has("/sys/module/apparmor/parameters/enabled", "Y"),
        pattern: None,
    },
    Exemption {
        specs: "Container OOM",
        count: 1,
        why: "cgroup v2 has no memory controller here, so no container is out of memory before the node is",
        holds: || !has("/sys/fs/cgroup/cgroup.controllers", "memory"),
        pattern: Some("Container OOM"),
    },
];

const fn benchmark(specs: &'static str) -> Exemption {
    Exemption {
        specs,
        count: 1,
        why: "it is measured by critest's other mode, -benchmark",
        holds: || true,
        pattern: None,
    }
}

/// Whether a file of the kernel has that word.
fn has(path: &str, word: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().any(|found| found == word))
}

/// How a spec ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its whole name, without the `[k8s.io]` before it.
    pub name: String,
    /// `passed`, `skipped`, `failed` and ginkgo's other words.
    pub state: String,
    /// What was wrong, and what it said while it ran.
    pub message: String,
}

/// Reads what ginkgo writes with `-ginkgo.json-report`.
///
/// # Errors
/// It is something else.
pub fn outcomes(json: &str) -> anyhow::Result<Vec<Outcome>> {
    let suites: Vec<Value> = serde_json::from_str(json).context("critest's report is no list of suites")?;
    let mut outcomes = Vec::new();
    for suite in &suites {
        for spec in suite["SpecReports"].as_array().context("a suite without specs")? {
            let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
            let state = text(&spec["State"]);
            // Set-up and reports are no specs, unless they fail.
            if spec["LeafNodeType"] != "It" && state == "passed" {
                continue;
            }
            let around = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().map(text);
            let words: Vec<_> = around.chain([text(&spec["LeafNodeText"])]).collect();
            let (failure, said) = (&spec["Failure"]["Message"], &spec["CapturedGinkgoWriterOutput"]);
            outcomes.push(Outcome {
                name: words.join(" ").trim_start_matches("[k8s.io] ").to_owned(),
                state,
                message: format!("{}\n{}", text(failure), text(said)),
            });
        }
    }
    Ok(outcomes)
}

/// What is wrong with a run, a line each; nothing when it was good. Pure.
pub fn verdict(outcomes: &[Outcome], exemptions: &[(&str, usize)], specs: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut skipped: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in outcomes {
        match outcome.state.as_str() {
            "passed" => {}
            "skipped" => match exemptions.iter().find(|(specs, _)| outcome.name.starts_with(specs)) {
                Some((specs, _)) => *skipped.entry(specs).or_default() += 1,
                None => wrong.push(format!("skipped without a reason that we know: {}", outcome.name)),
            },
            state => wrong.push(format!("{state}: {}\n{}", outcome.name, outcome.message)),
        }
    }
    for (specs, count) in exemptions {
        let seen = skipped.get(specs).copied().unwrap_or_default();
        if seen != *count {
            wrong.push(format!("{count} specs {specs:?} were to be skipped, {seen} were: correct the list"));
        }
    }
    if outcomes.len() != specs {
        wrong.push(format!("the suite has {} specs, not {specs}", outcomes.len()));
    }
    wrong
}

/// A node, a registry with critest's images, and critest.
#[derive(Debug)]
pub struct Suite {
    /// The node, for what a test wants to know besides.
    pub node: Node,
    _registry: Registry,
    dir: PathBuf,
}

impl Suite {
    /// Starts all that critest needs.
    ///
    /// # Errors
    /// Something is missing or does not start.
    pub async fn start() -> anyhow::Result<Suite> {
        let dir = std::env::var_os("ORLOP_TEST_CRITEST").map(PathBuf::from);
        let dir = dir.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../out/critest").into());
        ensure!(dir.join("stamp").exists(), "{} is missing: run tests/critest/build.sh", dir.display());
        let config = format!("registryConfigDir: {}\n", dir.join("certs.d").display());
        let options = NodeOptions { role: vec!["cri".into()], config, ..NodeOptions::default() };
        let node = Node::start_with(options).await?;
        let registry = Registry::of(&node, 5000, &dir.join("registry")).await?;
        // The AppArmor specs call `sudo apparmor_parser`; we are root already.
        let shim = node.root.join("bin/sudo");
        std::fs::create_dir_all(node.root.join("bin"))?;
        std::fs::write(&shim, "#!/bin/sh\nexec \"$@\"\n")?;
        std::fs::set_permissions(&shim, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(Suite { node, _registry: registry, dir })
    }

    /// critest with the given flags besides those that every run has.
    fn critest(&self, flags: &[String]) -> Command {
        let socket = format!("unix://{}", self.node.root.join("run/cri.sock").display());
        let mut critest = command(&self.node.netns, self.dir.join("critest"));
        let path = std::env::var("PATH").unwrap_or_default();
        critest.env("PATH", format!("{}:{path}", self.node.root.join("bin").display()));
        critest.current_dir(&self.node.root);
        critest.args(["-runtime-endpoint", &socket, "-image-endpoint", &socket]);
        critest.args(["-ginkgo.no-color", "-ginkgo.seed=1", "-ginkgo.timeout=30m"]).args(flags);
        critest
    }

    /// Runs the validation specs.
    ///
    /// # Errors
    /// critest wrote no report.
    pub async fn validate(&self) -> anyhow::Result<Vec<Outcome>> {
        let report = self.node.root.join("critest.json");
        let mut flags = vec![format!("-ginkgo.json-report={}", report.display())];
        let patterns = EXEMPTIONS.iter().filter(|exemption| (exemption.holds)());
        flags.extend(patterns.filter_map(|e| e.pattern).map(|p| format!("-ginkgo.skip={p}")));
        let ran = run(self.critest(&flags), None).await?;
        let json = std::fs::read_to_string(&report)
            .with_context(|| format!("critest wrote no report; it said:\n{}{}", ran.stdout, ran.stderr))?;
        let outcomes = outcomes(&json)?;
        let failed = outcomes.iter().any(|o| !matches!(o.state.as_str(), "passed" | "skipped"));
        ensure!(failed || ran.code == 0, "critest ended with {}:\n{}{}", ran.code, ran.stdout, ran.stderr);
        Ok(outcomes)
    }

    /// Runs the benchmark specs, one sample at a time, so that the figures are of the runtime and not of a queue
    /// before it: `samples` containers and pods, half as many images. Returns a table of the calls' durations.
    ///
    /// # Errors
    /// One failed, or there are no samples.
    pub async fn benchmark(&self, samples: usize) -> anyhow::Result<String> {
        let file = self.node.root.join("critest-benchmark.yaml");
        let images = samples.div_ceil(2);
        let params = format!(
            "containersNumber: {samples}\ncontainersNumberParallel: 1\npodsNumber: {samples}\npodsNumberParallel: 1\n\
             imagesNumber: {images}\nimagesNumberParallel: 1\n"
        );
        std::fs::write(&file, params).context("write the benchmarks' parameters")?;
        let written = self.node.root.join("samples");
        std::fs::create_dir_all(&written).context("make a directory for samples")?;
        let flags = [
            "-benchmark".to_owned(),
            format!("-benchmarking-params-file={}", file.display()),
            format!("-benchmarking-output-dir={}", written.display()),
        ];
        run(self.critest(&flags), None).await?.ok()?;
        figures::table(&written)
    }

    /// Ends the node and fails if it left anything.
    ///
    /// # Errors
    /// As [`Node::end`].
    pub async fn end(self) -> anyhow::Result<()> {
        self.node.end().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, state: &str) -> Outcome {
        Outcome { name: name.into(), state: state.into(), message: "why".into() }
    }

    #[test]
    fn nothing_drops_out_unseen() {
        let all = [outcome("a", "passed"), outcome("b x", "skipped"), outcome("b y", "skipped")];
        assert_eq!(verdict(&all, &[("b", 2)], 3), Vec::<String>::new());
        assert_eq!(verdict(&all, &[("b", 1)], 3).len(), 1, "more were skipped than named");
        assert_eq!(verdict(&all, &[("b x", 1)], 3).len(), 1, "one was skipped without a reason");
        assert_eq!(verdict(&all, &[("b", 2)], 4).len(), 1, "a spec is gone");
        assert_eq!(verdict(&[outcome("b", "passed")], &[("b", 1)], 1).len(), 1, "an exempted one ran");
        assert_eq!(verdict(&[outcome("b", "failed")], &[], 1).len(), 1);
        assert_eq!(verdict(&[outcome("b", "panicked")], &[("b", 0)], 1).len(), 1);
    }

    #[test]
    fn reports_are_read() {
        let json = r#"[{"SuiteDescription":"x","SpecReports":[
            {"ContainerHierarchyTexts":["[k8s.io] A","b"],"LeafNodeType":"It","LeafNodeText":"c","State":"failed",
             "Failure":{"Message":"no"},"CapturedGinkgoWriterOutput":"said"},
            {"ContainerHierarchyTexts":null,"LeafNodeType":"BeforeSuite","LeafNodeText":"","State":"passed"}]}]"#;
        let read = outcomes(json).expect("a report");
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].name.as_str(), read[0].state.as_str()), ("A b c", "failed"));
        assert_eq!(read[0].message, "no\nsaid");
        assert!(outcomes("{}").is_err());
    }
}
