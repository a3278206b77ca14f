//! Pods on the bridge: reaching each other and the world, limits, repetition.

use std::collections::HashSet;

use network::{AddError, Config, Mode, OpenError, PodNetwork};

use crate::lab::{Lab, NODE, Netns, OUTSIDE, Pod, info, lab, seen_by};

#[test]
fn pods_reach_each_other_and_keep_their_addresses() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let a = Pod::start(&network, "a", &[]).await;
        let b = Pod::start(&network, "b", &[]).await;
        assert_eq!((a.v4().as_str(), a.v6().as_str()), ("10.42.0.2", "fd42::2"));
        assert_eq!((b.v4().as_str(), b.v6().as_str()), ("10.42.0.3", "fd42::3"));
        assert_eq!(network.ips("a").as_ref(), Some(&a.ips));
        let server = b.netns.listen("[::]:80");
        assert_eq!(seen_by(&server, &a.netns, &b.v4(), 80).to_string(), a.v4());
        assert_eq!(seen_by(&server, &a.netns, &b.v6(), 80).to_string(), a.v6());
        // A pod reaches itself, by loopback too.
        assert_eq!(seen_by(&server, &b.netns, &b.v4(), 80).to_string(), b.v4());
        assert_eq!(seen_by(&server, &b.netns, "127.0.0.1", 80).to_string(), "127.0.0.1");
        // The node reaches pods, with its address on the bridge, and pods the node.
        assert_eq!(seen_by(&server, &lab.node, &b.v4(), 80).to_string(), "10.42.0.1");
        assert_eq!(seen_by(&server, &lab.node, &b.v6(), 80).to_string(), "fd42::1");
        let node = lab.node.listen("[::]:81");
        assert_eq!(seen_by(&node, &a.netns, NODE, 81).to_string(), a.v4());
        assert_eq!(seen_by(&node, &a.netns, "10.42.0.1", 81).to_string(), a.v4());
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn the_world_sees_the_node() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let a = Pod::start(&network, "a", &[]).await;
        let server = lab.outside.listen("[::]:80");
        assert_eq!(seen_by(&server, &a.netns, OUTSIDE, 80).to_string(), NODE);
        assert_eq!(seen_by(&server, &a.netns, "fd99::2", 80).to_string(), "fd99::1");
        network.destroy().await.unwrap();

        let plain = Config { masquerade: false, ..lab.config() };
        let network = PodNetwork::open(plain).await.unwrap();
        lab.outside.sh(&format!("ip route add 10.42.0.0/24 via {NODE}"));
        let a = Pod::start(&network, "a", &[]).await;
        assert_eq!(seen_by(&server, &a.netns, OUTSIDE, 80).to_string(), a.v4());
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn traffic_between_pods_is_routed_by_the_node() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let a = Pod::start(&network, "a", &[]).await;
        let b = Pod::start(&network, "b", &[]).await;
        let server = b.netns.listen("0.0.0.0:80");
        seen_by(&server, &a.netns, &b.v4(), 80);
        // Also afterwards: no redirect has led them past the node.
        seen_by(&server, &a.netns, &b.v4(), 80);
        let neighbours = a.netns.sh("ip -4 neigh show dev eth0");
        assert!(neighbours.contains("10.42.0.1 ") && !neighbours.contains(&b.v4()), "{neighbours}");
        assert!(a.netns.sh("ip route get 10.42.0.3").contains("via 10.42.0.1"));
        network.destroy().await.unwrap();
    });
}

#[test]
fn adding_and_removing_can_be_repeated() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let a = Pod::start(&network, "a", &[]).await;
        let again = network.add("a", &a.netns.path(), &[], &info("a")).await.unwrap();
        assert_eq!(again, a.ips);
        assert!(network.check("a").await.is_ok());
        // Somebody took the interface away: adding brings it back, with the same address.
        a.netns.sh("ip link del eth0");
        assert!(network.check("a").await.is_err());
        assert_eq!(network.add("a", &a.netns.path(), &[], &info("a")).await.unwrap(), a.ips);
        assert!(network.check("a").await.is_ok());
        assert_eq!(seen_by(&a.netns.listen("0.0.0.0:80"), &lab.node, &a.v4(), 80).to_string(), "10.42.0.1");

        network.remove("a", Some(&a.netns.path())).await.unwrap();
        network.remove("a", None).await.unwrap();
        network.remove("never-there", None).await.unwrap();
        network.remove("../no-id", None).await.unwrap();
        // At once again, while the kernel may still be at it: a new address, the same id.
        let b = Pod::start(&network, "a", &[]).await;
        assert_eq!(b.v4(), "10.42.0.3");
        // A namespace that is gone before its pod is removed is no trouble.
        drop(b.netns);
        network.remove("a", None).await.unwrap();
        network.close().await.unwrap();
        assert_eq!(network.status().await.deleting, 0);
        assert_eq!(lab.node.sh("ip -o link show master orlop0"), "");
        assert!(matches!(network.add("x", &a.netns.path(), &[], &info("x")).await, Err(AddError::Closed)));
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn a_namespace_that_cannot_be_used_leaves_nothing() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let missing = network.add("a", "/nowhere/netns".as_ref(), &[], &info("a")).await.unwrap_err();
        assert_eq!(missing.to_string(), "open network namespace /nowhere/netns");
        let netns = Netns::new();
        netns.sh("ip link add eth0 type bridge");
        let taken = network.add("a", &netns.path(), &[], &info("a")).await.unwrap_err();
        assert!(taken.to_string().starts_with("make the veth pair"), "{taken}");
        let bad = network.add("A/b", &netns.path(), &[], &info("a")).await.unwrap_err();
        assert!(matches!(bad, AddError::BadId(_)));
        network.reconcile(&[]).await.unwrap();
        assert_eq!(network.status().await.addresses[0].0, 0);
        assert_eq!(lab.node.sh("ip -o link show master orlop0"), "");
        network.destroy().await.unwrap();
    });
}

#[test]
fn a_full_range_is_an_error_until_a_pod_goes() {
    lab(async |lab: Lab| {
        let small = Config { pod_cidrs: vec!["10.42.0.0/29".parse().unwrap()], ..lab.config() };
        let network = PodNetwork::open(small).await.unwrap();
        let mut pods = Vec::new();
        for n in 0..5 {
            pods.push(Pod::start(&network, &n.to_string(), &[]).await);
        }
        let netns = Netns::new();
        let full = network.add("late", &netns.path(), &[], &info("late")).await.unwrap_err();
        assert_eq!(
            full.to_string(),
            "no free address in 10.42.0.0/29: all 5 are in use; remove pods or configure a larger pod CIDR"
        );
        let status = network.status().await;
        assert_eq!(status.addresses, [(5, 5)]);
        assert_eq!(status.warnings, ["every address of 10.42.0.0/29 is in use"]);
        network.remove("3", None).await.unwrap();
        let late = network.add("late", &netns.path(), &[], &info("late")).await.unwrap();
        assert_eq!(late, pods[3].ips);
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn many_at_once_never_share_an_address() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let pods: Vec<Netns> = (0..30).map(|_| Netns::new()).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for (n, netns) in pods.iter().enumerate() {
            let (network, path) = (network.clone(), netns.path());
            tasks.spawn(async move {
                let id = format!("pod-{n}");
                let first = network.add(&id, &path, &[], &info(&id)).await.unwrap();
                if n % 3 == 0 {
                    network.remove(&id, Some(&path)).await.unwrap();
                    return network.add(&id, &path, &[], &info(&id)).await.unwrap();
                }
                first
            });
        }
        let ips = tasks.join_all().await;
        let distinct: HashSet<_> = ips.iter().flat_map(|ips| ips.iter().collect::<Vec<_>>()).collect();
        assert_eq!(distinct.len(), 60);
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn two_nodes_share_a_machine_but_not_a_bridge() {
    lab(async |lab: Lab| {
        let first = PodNetwork::open(lab.config()).await.unwrap();
        let other = Config { state_dir: lab.state.path().join("other"), ..lab.config() };
        let refused = PodNetwork::open(other.clone()).await.err().unwrap();
        assert!(
            matches!(&refused, OpenError::ForeignBridge { bridge, .. } if bridge == "orlop0"),
            "{refused}"
        );
        let other =
            Config { bridge: "orlop1".to_owned(), pod_cidrs: vec!["10.43.0.0/24".parse().unwrap()], ..other };
        let second = PodNetwork::open(other).await.unwrap();
        let a = Pod::start(&first, "a", &[]).await;
        let b = Pod::start(&second, "a", &[]).await;
        let server = b.netns.listen("0.0.0.0:80");
        seen_by(&server, &a.netns, &b.v4(), 80);
        second.destroy().await.unwrap();
        // The first is unharmed.
        seen_by(&a.netns.listen("0.0.0.0:80"), &lab.node, &a.v4(), 80);
        first.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn counters_and_status_tell_what_is() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let a = Pod::start(&network, "a", &[]).await;
        let server = a.netns.listen("0.0.0.0:80");
        seen_by(&server, &lab.node, &a.v4(), 80);
        let stats = network.stats(&a.netns.path()).await.unwrap();
        assert_eq!(stats.iter().map(|stats| stats.name.as_str()).collect::<Vec<_>>(), ["eth0"]);
        assert!(stats[0].rx_bytes > 0 && stats[0].tx_packets > 0, "{stats:?}");
        assert!(network.stats("/nowhere".as_ref()).await.is_err());
        let status = network.status().await;
        assert_eq!((status.mode, status.ready, status.warnings.len()), (Mode::Bridge, Ok(()), 0));
        assert_eq!(status.addresses[0], (1, 253));
        assert_eq!(
            network.gateways(),
            ["10.42.0.1", "fd42::1"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap())
        );
        let forwarding =
            lab.node.sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding");
        assert_eq!(forwarding, "1\n1\n");
        network.destroy().await.unwrap();
    });
}

#[test]
fn a_kernel_without_ipv6_for_pods_will_do() {
    lab(async |lab: Lab| {
        // Below 1280 bytes the kernel has no IPv6 on an interface at all.
        let narrow =
            Config { mtu: Some(1000), pod_cidrs: vec!["10.42.0.0/24".parse().unwrap()], ..lab.config() };
        let network = PodNetwork::open(narrow).await.unwrap();
        let a = Pod::start(&network, "a", &[]).await;
        assert_eq!(a.netns.sh("cat /proc/net/route | wc -l").trim(), "3");
        assert!(a.netns.sh("ip link show eth0").contains("mtu 1000"));
        seen_by(&a.netns.listen("0.0.0.0:80"), &lab.node, &a.v4(), 80);
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn contradictory_configurations_are_refused() {
    lab(async |lab: Lab| {
        let message = async |config: Config| match PodNetwork::open(config).await {
            Ok(_) => "opened".to_owned(),
            Err(err) => err.to_string(),
        };
        let name = Config { bridge: "a-name-too-long-for-linux".to_owned(), ..lab.config() };
        assert!(message(name).await.contains("bridge name"));
        let cidr = |cidrs: &[&str]| Config {
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ..lab.config()
        };
        assert!(message(cidr(&[])).await.contains("at least one"));
        assert!(
            message(cidr(&["10.0.0.0/24", "10.1.0.0/24"])).await.contains("one pod CIDR per address family")
        );
        assert!(message(cidr(&["10.0.0.0/31"])).await.contains("too small"));
        assert_eq!(lab.leftovers(), "");
    });
}
