//! How long calls take with fifty pods: printed, and held to generous bounds (this is an unoptimised build).

use std::time::{Duration, Instant};

use cri_api::Cri;
use cri_api::v1::*;

use crate::world::{Calls, container, in_world, pod};

const PODS: usize = 50;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_pods_are_quick() {
    in_world(5, async |world| {
        let client = world.up().await;
        let calls = Calls(&client);
        let (mut runs, mut creates, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut removals, mut sandboxes) = (Vec::new(), Vec::new());
        for number in 0..PODS {
            let config = pod(world, &format!("p{number}"));
            let mut sleeper = container("c", "");
            sleeper.command = vec!["sleep".into(), "1000".into()];
            let begin = Instant::now();
            let sandbox = calls.run(&config).await;
            runs.push(begin.elapsed());
            let begin = Instant::now();
            let id = calls.create(&sandbox, &config, &sleeper).await;
            creates.push(begin.elapsed());
            let begin = Instant::now();
            calls.start(&id).await;
            starts.push(begin.elapsed());
            sandboxes.push((sandbox, id));
        }
        let (mut lists, mut statuses, mut execs) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..100 {
            let begin = Instant::now();
            let list = client.list_containers(ListContainersRequest::default()).await.expect("a list");
            lists.push(begin.elapsed());
            assert_eq!(list.containers.len(), PODS);
            let id = &sandboxes[round % PODS].1;
            let begin = Instant::now();
            calls.status(id).await;
            statuses.push(begin.elapsed());
        }
        for (_, id) in sandboxes.iter().take(20) {
            let begin = Instant::now();
            let cmd = vec!["true".to_owned()];
            let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 10 };
            client.exec_sync(request).await.expect("executes");
            execs.push(begin.elapsed());
        }
        for (sandbox, _) in &sandboxes {
            let begin = Instant::now();
            calls.remove(sandbox).await;
            removals.push(begin.elapsed());
        }
        let times = [
            ("run", runs),
            ("create", creates),
            ("start", starts),
            ("list", lists),
            ("status", statuses),
            ("exec", execs),
            ("remove", removals),
        ];
        for (what, times) in times {
            let middle = median(times);
            println!("{what}: {middle:?}");
            assert!(middle < Duration::from_millis(250), "{what} takes {middle:?}");
        }
    })
    .await;
}
