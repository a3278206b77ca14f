//! Devices by name, as a container sees them.

use cri_api::Cri;
use cri_api::v1::*;
use tonic::Code;

use crate::world::{Calls, container, in_world, pod};

#[tokio::test]
async fn a_container_has_its_cdi_devices() {
    in_world(19, async |world| {
        let client = world.up().await;
        let calls = Calls(&client);
        let directory = world.path("cdi");
        std::fs::create_dir_all(&directory).expect("made");
        std::fs::write(world.path("library"), "of the vendor").expect("written");
        let library = world.path("library");
        let text = format!(
            "cdiVersion: 0.6.0\nkind: vendor.com/gpu\ncontainerEdits:\n  env: [VENDOR=yes]\n  mounts:\n  \
             - {{hostPath: {}, containerPath: /lib/vendor, options: [ro, nosuid, nodev, bind]}}\ndevices:\n\
             - name: zero\n  containerEdits:\n    deviceNodes:\n    \
             - {{path: /dev/vendor0, hostPath: /dev/zero, fileMode: 432, gid: 44, permissions: rw}}\n\
             - name: hooked\n  containerEdits:\n    hooks:\n    - {{hookName: createContainer, path: /bin/true}}\n",
            library.display()
        );
        std::fs::write(directory.join("vendor.yaml"), text).expect("written");
        let config = pod(world, "devices");
        let sandbox = calls.run(&config).await;
        let mut wanted = container("c", "sleep 1000");
        wanted.annotations = [("cdi.k8s.io/plugin".to_owned(), "vendor.com/gpu=zero".to_owned())].into();
        let id = calls.create(&sandbox, &config, &wanted).await;
        calls.start(&id).await;
        let look = "echo $VENDOR; cat /lib/vendor; echo; ls -ln /dev/vendor0 | tr -s ' ' | cut -d' ' -f1,4-6; \
                    head -c 3 /dev/vendor0 | wc -c; echo x > /lib/vendor || echo read-only";
        let (out, _) = calls.exec(&id, look).await;
        assert_eq!(out, "yes\nof the vendor\ncrw-rw---- 44 1, 5\n3\nread-only\n");

        for (name, code, part) in [
            ("vendor.com/gpu=hooked", Code::InvalidArgument, "hooks"),
            ("vendor.com/gpu=none", Code::FailedPrecondition, "no file describes it"),
            ("nonsense", Code::InvalidArgument, "vendor/class=name"),
        ] {
            let mut wanted = container("refused", "true");
            wanted.cdi_devices = vec![CdiDevice { name: name.to_owned() }];
            let request = CreateContainerRequest {
                pod_sandbox_id: sandbox.clone(),
                config: Some(wanted),
                sandbox_config: Some(config.clone()),
            };
            let refused = client.create_container(request).await.expect_err(name);
            assert_eq!(refused.code(), code, "{refused}");
            assert!(refused.message().contains(part) && refused.message().contains(name), "{refused}");
        }
        calls.remove(&sandbox).await;
    })
    .await;
}
