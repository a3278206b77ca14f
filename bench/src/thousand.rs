//! A thousand containers in ten pods, made and never started: what lists of them cost.
//!
//! Assumes: a list costs the same whatever its containers do.

use std::time::Instant;

use anyhow::{Context, ensure};
use cri_api::Cri;
use cri_api::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest, ListPodSandboxRequest,
};

use crate::engine::Engine;
use crate::measure::{Measure, OF_A_THOUSAND};
use crate::pods;
use crate::report::Report;

const PODS: usize = 10;
const IN_EACH: usize = 100;
const QUESTIONS: usize = 100;

/// Makes the containers, asks, and removes them.
pub async fn round(report: &mut Report, engine: &Engine) {
    report.say(&format!("{}: making {} containers", engine.who.name(), PODS * IN_EACH));
    let mut made = Vec::new();
    let outcome = async {
        for _ in 0..PODS {
            made.push(pods::make(&engine.cri, &engine.dir, IN_EACH).await?);
        }
        ask(report, engine).await
    };
    let outcome = outcome.await;
    report.note(engine.who, OF_A_THOUSAND, outcome);
    for pod in made {
        let ended = pod.end(&engine.cri).await;
        report.note(engine.who, OF_A_THOUSAND, ended.map(drop).context("end a pod of a hundred containers"));
    }
}

async fn ask(report: &mut Report, engine: &Engine) -> anyhow::Result<()> {
    let state = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
    let running = ContainerFilter { state: Some(state), ..Default::default() };
    for _ in 0..QUESTIONS {
        let begin = Instant::now();
        let answer = engine.cri.list_containers(ListContainersRequest::default()).await;
        let time = begin.elapsed();
        let count = answer.context("ListContainers")?.containers.len();
        ensure!(count == PODS * IN_EACH, "ListContainers shows {count} containers");
        report.add_ms(engine.who, Measure::ListThousand, time);

        let begin = Instant::now();
        let request = ListContainersRequest { filter: Some(running.clone()) };
        let answer = engine.cri.list_containers(request).await;
        let time = begin.elapsed();
        let count = answer.context("ListContainers of what runs")?.containers.len();
        ensure!(count == 0, "{count} containers run that were never started");
        report.add_ms(engine.who, Measure::FilterThousand, time);

        let begin = Instant::now();
        let answer = engine.cri.list_pod_sandbox(ListPodSandboxRequest::default()).await;
        let time = begin.elapsed();
        let count = answer.context("ListPodSandbox")?.items.len();
        ensure!(count == PODS, "ListPodSandbox shows {count} pods");
        report.add_ms(engine.who, Measure::ListPodsThousand, time);
    }
    Ok(())
}
