//! CNI plugins in the bridge's place: small shell plugins that write down what they were told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use network::files::DnsConfig;
use network::{Config, Mode, PodInfo, PodNetwork};

use crate::lab::{Lab, Netns, info, lab, port};

/// Logs `VERB plugin container` and keeps its stdin; fails as the file `fail-VERB-plugin` says.
const PLUGIN: &str = r#"#!/bin/sh
here=$(dirname "$0"); me=$(basename "$0")
cat > "$here/stdin-$CNI_COMMAND-$me"
if [ "$CNI_COMMAND" = VERSION ]; then
    echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}'; exit 0
fi
echo "$CNI_COMMAND $me $CNI_CONTAINERID" >> "$here/log"
env | grep ^CNI_ | sort > "$here/env-$CNI_COMMAND-$me"
readlink /proc/self/ns/net > "$here/netns-$me"
if [ -e "$here/fail-$CNI_COMMAND-$me" ]; then cat "$here/fail-$CNI_COMMAND-$me"; exit 1; fi
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion":"1.1.0","interfaces":[{"name":"br"},{"name":"eth0","sandbox":"'$CNI_NETNS'"}],
 "ips":[{"address":"10.99.0.1/24","interface":0},{"address":"10.99.0.7/24","interface":1},{"address":"fd99::7/64","interface":1}]}'
"#;

const LIST: &str = r#"{"cniVersion":"1.1.0","name":"lab","plugins":[
 {"type":"first","mode":"x"},{"type":"second","capabilities":{"portMappings":true,"dns":true}}]}"#;

struct Plugins(PathBuf);

impl Plugins {
    fn new(lab: &Lab) -> Plugins {
        let bin = lab.state.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        for name in ["first", "second"] {
            fs::write(bin.join(name), PLUGIN).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir_all(lab.state.path().join("net.d")).unwrap();
        Plugins(bin)
    }

    fn config(&self, lab: &Lab) -> Config {
        Config {
            cni_conf_dir: Some(lab.state.path().join("net.d")),
            cni_bin_dirs: vec![self.0.clone()],
            ..lab.config()
        }
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }

    /// What ran since the last call.
    fn log(&self) -> String {
        let log = self.read("log");
        let _ = fs::remove_file(self.0.join("log"));
        log.lines().collect::<Vec<_>>().join(", ")
    }

    fn fail(&self, what: &str, output: &str) {
        fs::write(self.0.join(format!("fail-{what}")), output).unwrap();
    }

    fn heal(&self, what: &str) {
        fs::remove_file(self.0.join(format!("fail-{what}"))).unwrap();
    }

    fn stdin(&self, what: &str) -> serde_json::Value {
        serde_json::from_str(&self.read(&format!("stdin-{what}"))).unwrap()
    }
}

fn write_list(lab: &Lab, text: &str) {
    fs::write(lab.state.path().join("net.d/10-lab.conflist"), text).unwrap();
}

#[test]
fn a_list_is_run_by_the_book() {
    lab(async |lab: Lab| {
        let plugins = Plugins::new(&lab);
        write_list(&lab, LIST);
        fs::write(lab.state.path().join("net.d/99-later.conflist"), LIST.replace("lab", "later")).unwrap();
        let network = PodNetwork::open(plugins.config(&lab)).await.unwrap();
        let pod = Netns::new();
        let dns = DnsConfig { servers: vec!["10.43.0.10".to_owned()], ..DnsConfig::default() };
        let about = PodInfo { dns, ..info("web") };
        let ips = network.add("a1", &pod.path(), &[port(8080, 80)], &about).await.unwrap();
        assert_eq!(ips.iter().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["10.99.0.7", "fd99::7"]);
        assert_eq!(plugins.log(), "ADD first a1, ADD second a1");
        // In the node's namespace, with loopback of the pod up.
        assert_eq!(plugins.read("netns-first"), lab.node.sh("readlink /proc/self/ns/net"));
        assert!(pod.sh("ip link show lo").contains("UP"));
        let env = plugins.read("env-ADD-second");
        for line in [
            "CNI_COMMAND=ADD".to_owned(),
            "CNI_CONTAINERID=a1".to_owned(),
            "CNI_IFNAME=eth0".to_owned(),
            format!("CNI_NETNS={}", pod.path().display()),
            format!("CNI_PATH={}", plugins.0.display()),
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;\
             K8S_POD_INFRA_CONTAINER_ID=a1;K8S_POD_UID=u1"
                .to_owned(),
        ] {
            assert!(env.lines().any(|have| have == line), "{line} is not in {env}");
        }
        let first = plugins.stdin("ADD-first");
        assert_eq!(
            (&first["name"], &first["mode"], &first["cniVersion"]),
            (&"lab".into(), &"x".into(), &"1.1.0".into())
        );
        assert!(first["prevResult"].is_null() && first["runtimeConfig"].is_null());
        let second = plugins.stdin("ADD-second");
        assert_eq!(second["prevResult"]["ips"][1]["address"], "10.99.0.7/24");
        assert_eq!(second["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
        assert_eq!(second["runtimeConfig"]["dns"]["servers"][0], "10.43.0.10");
        assert!(second["capabilities"].is_null());

        // Repeating runs nothing; CHECK goes through the list.
        assert_eq!(network.add("a1", &pod.path(), &[], &info("web")).await.unwrap(), ips);
        assert_eq!(plugins.log(), "");
        network.check("a1").await.unwrap();
        assert_eq!(plugins.log(), "CHECK first a1, CHECK second a1");
        assert_eq!(plugins.stdin("CHECK-first")["prevResult"]["ips"][1]["address"], "10.99.0.7/24");

        // DEL is told of its ADD, although the daemon was restarted and the list replaced.
        drop(network);
        write_list(&lab, &LIST.replace("\"x\"", "\"y\""));
        let network = PodNetwork::open(plugins.config(&lab)).await.unwrap();
        assert_eq!(network.ips("a1"), Some(ips));
        network.remove("a1", Some(&pod.path())).await.unwrap();
        assert_eq!(plugins.log(), "DEL second a1, DEL first a1");
        let del = plugins.stdin("DEL-first");
        assert_eq!(
            (&del["mode"], &del["prevResult"]["ips"][1]["address"]),
            (&"x".into(), &"10.99.0.7/24".into())
        );
        network.remove("a1", None).await.unwrap();
        assert_eq!(plugins.log(), "");
        // No bridge of ours was ever made.
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn failures_are_told_and_undone() {
    lab(async |lab: Lab| {
        let plugins = Plugins::new(&lab);
        write_list(&lab, LIST);
        let network = PodNetwork::open(plugins.config(&lab)).await.unwrap();
        let pod = Netns::new();
        plugins
            .fail("ADD-second", r#"{"cniVersion":"1.1.0","code":11,"msg":"try later","details":"no IPs"}"#);
        let failed = network.add("a1", &pod.path(), &[], &info("web")).await.unwrap_err();
        let cause = std::error::Error::source(&failed).unwrap().to_string();
        assert_eq!(cause, r#"CNI plugin "second" (ADD) failed with code 11: try later (no IPs)"#);
        assert_eq!(plugins.log(), "ADD first a1, ADD second a1, DEL second a1, DEL first a1");
        assert_eq!(network.ips("a1"), None);
        plugins.heal("ADD-second");

        network.add("a1", &pod.path(), &[], &info("web")).await.unwrap();
        plugins.fail("DEL-second", "not JSON");
        assert!(network.remove("a1", None).await.is_err());
        assert!(network.ips("a1").is_some());
        plugins.heal("DEL-second");
        plugins.log();
        // The dead are found, and plugins told who lives.
        network.add("a2", &pod.path(), &[], &info("web")).await.unwrap();
        plugins.log();
        network.reconcile(&["a2".to_owned()]).await.unwrap();
        assert_eq!(plugins.log(), "DEL second a1, DEL first a1, GC first , GC second ");
        assert_eq!(
            plugins.stdin("GC-first")["cni.dev/valid-attachments"],
            serde_json::json!([{"containerID": "a2", "ifname": "eth0"}])
        );
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn a_configuration_comes_and_goes() {
    lab(async |lab: Lab| {
        let plugins = Plugins::new(&lab);
        let network = PodNetwork::open(plugins.config(&lab)).await.unwrap();
        assert_eq!(network.status().await.mode, Mode::Bridge);
        let (first, second) = (Netns::new(), Netns::new());
        assert_eq!(
            network.add("b1", &first.path(), &[], &info("b1")).await.unwrap().primary().unwrap().to_string(),
            "10.42.0.2"
        );
        write_list(&lab, LIST);
        assert_eq!(
            network.add("c1", &second.path(), &[], &info("c1")).await.unwrap().primary().unwrap().to_string(),
            "10.99.0.7"
        );
        let status = network.status().await;
        let file = lab.state.path().join("net.d/10-lab.conflist");
        assert_eq!((status.mode, status.ready), (Mode::Cni { name: "lab".to_owned(), file }, Ok(())));

        plugins.fail("STATUS-second", r#"{"code":50,"msg":"not ready"}"#);
        let ready = network.status().await.ready.unwrap_err();
        assert!(ready.contains("failed with code 50: not ready"), "{ready}");
        plugins.heal("STATUS-second");
        write_list(&lab, &LIST.replace("\"second\"", "\"third\""));
        let ready = network.status().await.ready.unwrap_err();
        assert!(ready.contains(r#"CNI plugin "third" is in none of"#), "{ready}");
        // A broken configuration is an error, never silently the bridge.
        write_list(&lab, "{}");
        assert!(network.status().await.ready.is_err());
        assert!(network.add("c2", &second.path(), &[], &info("c2")).await.is_err());
        // Each is taken down by who made it.
        plugins.log();
        network.remove("b1", None).await.unwrap();
        network.remove("c1", None).await.unwrap();
        assert_eq!(plugins.log(), "DEL second c1, DEL first c1");
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}
