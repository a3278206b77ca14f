//! Sandboxes and containers from their first call to their last.

use cri_api::Cri;
use cri_api::v1::*;
use futures::StreamExt;
use tonic::Code;

use crate::world::{Calls, IMAGE, container, eventually, in_world, pod};

#[tokio::test]
async fn a_pod_lives_and_dies() {
    in_world(1, async |world| {
        let client = world.up().await;
        let calls = Calls(&client);
        assert_eq!(
            client.version(VersionRequest::default()).await.expect("a version").runtime_api_version,
            "v1"
        );
        let status = client.status(StatusRequest { verbose: true }).await.expect("a status");
        assert!(status.status.expect("conditions").conditions.iter().all(|condition| condition.status));
        let mut events = client.container_events().await.expect("events");

        let config = pod(world, "web");
        let sandbox = calls.run(&config).await;
        assert_eq!(calls.run(&config).await, sandbox, "a retry gives the same sandbox");
        let list = |filter| client.list_pod_sandbox(ListPodSandboxRequest { filter });
        assert_eq!(list(None).await.expect("a list").items.len(), 1);
        let other =
            PodSandboxFilter { label_selector: [("pod".into(), "x".into())].into(), ..Default::default() };
        assert!(list(Some(other)).await.expect("a list").items.is_empty());
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox[..12].to_owned(), verbose: true };
        let status =
            client.pod_sandbox_status(request).await.expect("by a short id").status.expect("a status");
        assert!(status.network.expect("a network").ip.starts_with("10.97.1."));

        let script = "echo out; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.05; done";
        let config_c = container("main", script);
        let id = calls.create(&sandbox, &config, &config_c).await;
        assert_eq!(calls.create(&sandbox, &config, &config_c).await, id, "a retry gives the same container");
        assert_eq!(calls.status(&id).await.state, ContainerState::ContainerCreated as i32);
        calls.start(&id).await;
        let status = calls.wait(&id, ContainerState::ContainerRunning).await;
        assert!(status.started_at > 0 && status.image_id.starts_with("sha256:"));
        assert_eq!(status.image.expect("an image").image, IMAGE);
        eventually("the log has both lines", async || {
            let log = std::fs::read_to_string(&status.log_path).unwrap_or_default();
            log.contains(" stdout F out\n") && log.contains(" stderr F err\n")
        })
        .await;
        let (out, code) = calls.exec(&id, "hostname; cat /etc/resolv.conf; echo $FROM; exit 3").await;
        assert_eq!(code, 3);
        assert_eq!(out, "web\nnameserver 10.43.0.10\nsearch cluster.local\noptions ndots:5\nimage\n");
        let slow =
            ExecSyncRequest { container_id: id.clone(), cmd: vec!["sleep".into(), "60".into()], timeout: 1 };
        assert_eq!(client.exec_sync(slow).await.expect_err("too slow").code(), Code::DeadlineExceeded);
        let none = ExecSyncRequest { container_id: id.clone(), cmd: vec!["/no/such".into()], timeout: 1 };
        let error = client.exec_sync(none).await.expect_err("no such program");
        assert!(error.message().contains("/no/such"), "{error}");
        let stats =
            client.container_stats(ContainerStatsRequest { container_id: id.clone() }).await.expect("stats");
        assert!(stats.stats.expect("stats").memory.expect("memory").usage_bytes.expect("bytes").value > 0);
        let request = PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
        let linux = client.pod_sandbox_stats(request).await.expect("stats").stats.expect("stats").linux;
        assert_eq!(
            linux.expect("Linux").network.expect("a network").default_interface.expect("one").name,
            "eth0"
        );

        client
            .stop_container(StopContainerRequest { container_id: id.clone(), timeout: 10 })
            .await
            .expect("stops");
        let status = calls.status(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
        assert!(status.finished_at >= status.started_at);
        let mut seen = Vec::new();
        while seen.last() != Some(&(id.clone(), ContainerEventType::ContainerStoppedEvent as i32)) {
            let event = events.next().await.expect("goes on").expect("an event");
            seen.push((event.container_id, event.container_event_type));
        }
        assert_eq!(seen.iter().filter(|(of, _)| *of == id).count(), 3, "created, started, stopped: {seen:?}");

        calls.remove(&sandbox).await;
        calls.remove(&sandbox).await;
        let request = ContainerStatusRequest { container_id: id, verbose: false };
        assert_eq!(client.container_status(request).await.expect_err("gone").code(), Code::NotFound);
        assert!(client.list_containers(Default::default()).await.expect("a list").containers.is_empty());
        assert_eq!(std::fs::read_dir(world.path("run/cri")).expect("the directory").count(), 0);
    })
    .await;
}

#[tokio::test]
async fn users_security_and_mounts_reach_the_process() {
    in_world(2, async |world| {
        let client = world.up().await;
        let calls = Calls(&client);
        let config = pod(world, "secure");
        let sandbox = calls.run(&config).await;
        let host = world.path("volume");
        std::fs::create_dir_all(&host).expect("a directory");
        std::fs::write(host.join("file"), "content").expect("a file");
        let mut wanted =
            container("c", "id -u; id -g; id -G; cat /v/file; echo; touch /x || echo readonly; exit 0");
        wanted.mounts = vec![Mount {
            container_path: "/v".into(),
            host_path: host.to_string_lossy().into_owned(),
            readonly: true,
            ..Default::default()
        }];
        wanted.linux = Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                run_as_username: "app".into(),
                supplemental_groups: vec![5],
                readonly_rootfs: true,
                no_new_privs: true,
                ..Default::default()
            }),
            ..Default::default()
        });
        let id = calls.create(&sandbox, &config, &wanted).await;
        calls.start(&id).await;
        let status = calls.wait(&id, ContainerState::ContainerExited).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
        let user = status.user.expect("a user").linux.expect("Linux");
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1000, vec![5, 7, 1000]));
        eventually("the log is complete", async || {
            let log = std::fs::read_to_string(&status.log_path).unwrap_or_default();
            let lines: Vec<_> =
                log.lines().filter(|l| l.contains("stdout")).filter_map(|l| l.rsplit("F ").next()).collect();
            lines == ["1000", "1000", "1000 5 7", "content", "readonly"]
        })
        .await;
        let create = |config_c: ContainerConfig| {
            client.create_container(CreateContainerRequest {
                pod_sandbox_id: sandbox.clone(),
                config: Some(config_c),
                sandbox_config: None,
            })
        };
        let mut privileged = container("p", "true");
        privileged.linux = Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext { privileged: true, ..Default::default() }),
            ..Default::default()
        });
        assert_eq!(create(privileged).await.expect_err("refused").code(), Code::InvalidArgument);
        let mut unknown = container("u", "true");
        unknown.image = Some(ImageSpec { image: "nowhere/nothing".into(), ..Default::default() });
        assert_eq!(create(unknown).await.expect_err("refused").code(), Code::NotFound);
        let mut missing = container("m", "true");
        missing.command = vec!["/no/such/program".into()];
        let id = create(missing).await.expect("is made").container_id;
        let error = client.start_container(StartContainerRequest { container_id: id.clone() }).await;
        assert!(error.expect_err("cannot start").message().contains("/no/such/program"));
        assert_eq!(calls.status(&id).await.state, ContainerState::ContainerExited as i32);
        let image = Some(ImageSpec { image: IMAGE.into(), ..Default::default() });
        let error = client.remove_image(RemoveImageRequest { image }).await.expect_err("in use");
        assert_eq!(error.code(), Code::FailedPrecondition);
    })
    .await;
}

#[tokio::test]
async fn a_restarted_server_finds_everything() {
    in_world(3, async |world| {
        let client = world.up().await;
        let calls = Calls(&client);
        let config = pod(world, "kept");
        let sandbox = calls.run(&config).await;
        let id = calls.create(&sandbox, &config, &container("c", "while :; do sleep 0.1; done")).await;
        calls.start(&id).await;
        let short = calls.create(&sandbox, &config, &container("short", "sleep 0.3; exit 9")).await;
        calls.start(&short).await;
        let before = calls.status(&id).await;
        let ip = |status: PodSandboxStatusResponse| status.status.and_then(|s| s.network).map(|n| n.ip);
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
        let ip_before = ip(client.pod_sandbox_status(request.clone()).await.expect("a status"));
        drop(client);
        world.down().await;

        let client = world.up().await;
        let calls = Calls(&client);
        assert_eq!(calls.status(&id).await, before, "nothing changed");
        assert_eq!(ip(client.pod_sandbox_status(request).await.expect("a status")), ip_before);
        assert_eq!(calls.run(&config).await, sandbox, "names are known again");
        let ended = calls.wait(&short, ContainerState::ContainerExited).await;
        assert_eq!(ended.exit_code, 9);
        assert_eq!(calls.exec(&id, "echo here").await, ("here\n".to_owned(), 0));
        calls.remove(&sandbox).await;
    })
    .await;
}
