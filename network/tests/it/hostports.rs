//! Ports of the node that lead to pods.

use std::time::Duration;

use network::{AddError, PodNetwork, PortMapping, Protocol};

use crate::lab::{Lab, NODE, Netns, OUTSIDE, Pod, info, lab, port, seen_by};

#[test]
fn a_host_port_is_reached_from_everywhere() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let a = Pod::start(&network, "a", &[port(8080, 80)]).await;
        let b = Pod::start(&network, "b", &[]).await;
        let server = a.netns.listen("[::]:80");
        assert_eq!(seen_by(&server, &lab.outside, NODE, 8080).to_string(), OUTSIDE);
        assert_eq!(seen_by(&server, &lab.outside, "fd99::1", 8080).to_string(), "fd99::2");
        assert_eq!(seen_by(&server, &lab.node, "127.0.0.1", 8080).to_string(), "10.42.0.1");
        seen_by(&server, &lab.node, NODE, 8080);
        seen_by(&server, &lab.node, "fd99::1", 8080);
        assert_eq!(seen_by(&server, &b.netns, NODE, 8080).to_string(), b.v4());
        assert_eq!(seen_by(&server, &b.netns, "10.42.0.1", 8080).to_string(), b.v4());
        assert_eq!(seen_by(&server, &b.netns, "fd99::1", 8080).to_string(), b.v6());
        // The pod itself, which must not see its own address answering.
        assert_eq!(seen_by(&server, &a.netns, NODE, 8080).to_string(), "10.42.0.1");
        assert_eq!(seen_by(&server, &a.netns, "fd99::1", 8080).to_string(), "fd42::1");
        // The kernel cannot forward from ::1: refused, not hanging.
        let refused = lab.node.connect("::1".parse().unwrap(), 8080).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

        network.remove("a", None).await.unwrap();
        assert!(!lab.outside.reaches(NODE.parse().unwrap(), 8080));
        assert!(!lab.node.reaches("127.0.0.1".parse().unwrap(), 8080));
        // The port is free at once.
        let c = Pod::start(&network, "c", &[port(8080, 81)]).await;
        seen_by(&c.netns.listen("0.0.0.0:81"), &lab.outside, NODE, 8080);
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn a_port_on_one_address_is_on_no_other() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let on =
            |ip: &str, host_port| PortMapping { host_ip: Some(ip.parse().unwrap()), ..port(host_port, 80) };
        let a = Pod::start(&network, "a", &[on("127.0.0.1", 8080), on(NODE, 8081), on("::", 8082)]).await;
        let b = Pod::start(&network, "b", &[on(NODE, 8080)]).await;
        let (a_server, b_server) = (a.netns.listen("[::]:80"), b.netns.listen("0.0.0.0:80"));
        seen_by(&a_server, &lab.node, "127.0.0.1", 8080);
        seen_by(&b_server, &lab.outside, NODE, 8080);
        seen_by(&a_server, &lab.outside, NODE, 8081);
        seen_by(&a_server, &lab.outside, "fd99::1", 8082);
        assert!(!lab.node.reaches("127.0.0.1".parse().unwrap(), 8081));
        assert!(!lab.outside.reaches(NODE.parse().unwrap(), 8082));
        network.destroy().await.unwrap();
    });
}

#[test]
fn udp_ports_answer_from_where_they_were_asked() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let dns = PortMapping { protocol: Protocol::Udp, ..port(5353, 53) };
        let a = Pod::start(&network, "a", &[dns]).await;
        let server = a.netns.udp("0.0.0.0:53");
        for (client, target) in [(&lab.outside, NODE), (&lab.node, "127.0.0.1"), (&lab.node, NODE)] {
            let client = client.udp("0.0.0.0:0");
            client.connect((target, 5353)).unwrap();
            client.send(b"ping").unwrap();
            let mut buffer = [0; 4];
            let (_, peer) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"pong", peer).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 4);
            assert_eq!(&buffer, b"pong");
        }
        network.destroy().await.unwrap();
    });
}

#[test]
fn a_udp_client_that_never_pauses_notices_changes() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let syslog = PortMapping { protocol: Protocol::Udp, ..port(5514, 514) };
        let client = lab.outside.udp("0.0.0.0:0");
        let send = || drop(client.send_to(b"line", (NODE, 5514)));
        // Before there is a pod: the flow is remembered as one to the node.
        send();
        let mut buffer = [0; 4];
        for id in ["a", "b"] {
            let pod = Pod::start(&network, id, std::slice::from_ref(&syslog)).await;
            let server = pod.netns.udp("0.0.0.0:514");
            send();
            server.recv_from(&mut buffer).unwrap();
            network.remove(id, None).await.unwrap();
            send();
        }
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn ports_in_use_are_refused() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let _a = Pod::start(&network, "a", &[port(8080, 80)]).await;
        let _ssh = lab.node.listen("0.0.0.0:22");
        let netns = Netns::new();
        let taken =
            network.add("b", &netns.path(), &[port(81, 80), port(8080, 80)], &info("b")).await.unwrap_err();
        assert_eq!(taken.to_string(), "host port 8080/tcp is already used by sandbox a");
        let taken = network.add("b", &netns.path(), &[port(22, 80)], &info("b")).await.unwrap_err();
        assert_eq!(taken.to_string(), "host port 22/tcp is in use by a process on the node");
        let zero = network.add("b", &netns.path(), &[port(80, 0)], &info("b")).await.unwrap_err();
        assert!(matches!(zero, AddError::BadPort { .. }));
        // Nothing of the failed attempts is left.
        network.add("b", &netns.path(), &[port(81, 80)], &info("b")).await.unwrap();
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn nobody_reaches_the_nodes_loopback_from_the_wire() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        // A pod with a host port makes the bridge route 127.0.0.0/8.
        let a = Pod::start(&network, "a", &[port(8080, 80)]).await;
        let secret = lab.node.listen("127.0.0.1:2379");
        secret.set_nonblocking(true).unwrap();
        let forge = |via: &str, dev: &str| {
            format!(
                "ip addr del 127.0.0.1/8 dev lo || true
                 echo 1 > /proc/sys/net/ipv4/conf/{dev}/route_localnet
                 ip route add 127.0.0.1/32 via {via} dev {dev}"
            )
        };
        a.netns.sh(&forge("10.42.0.1", "eth0"));
        lab.outside.sh(&forge(NODE, "in0"));
        let target = "127.0.0.1".parse().unwrap();
        assert!(!a.netns.reaches(target, 2379));
        assert!(!lab.outside.reaches(target, 2379));
        assert_eq!(secret.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        // It is the rule that stops it: without, the pod's packets arrive.
        lab.node.sh("nft flush chain inet orlop-orlop0 guard");
        assert!(a.netns.reaches(target, 2379));
        network.destroy().await.unwrap();
    });
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let a = Pod::start(&network, "a", &[port(8080, 80)]).await;
        let a_server = a.netns.listen("0.0.0.0:80");
        lab.node.sh("nft flush ruleset");
        assert!(!lab.outside.reaches(NODE.parse().unwrap(), 8080));
        let b = Pod::start(&network, "b", &[port(8081, 80)]).await;
        seen_by(&a_server, &lab.outside, NODE, 8080);
        seen_by(&b.netns.listen("0.0.0.0:80"), &lab.outside, NODE, 8081);
        lab.node.sh("nft flush ruleset");
        network.remove("b", None).await.unwrap();
        network.reconcile(&["a".to_owned()]).await.unwrap();
        seen_by(&a_server, &lab.outside, NODE, 8080);
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn a_cancelled_caller_leaves_nothing_half_done() {
    lab(async |lab: Lab| {
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let netns = Netns::new();
        let (ports, pod) = ([port(8080, 80)], info("a"));
        let path = netns.path();
        let add = network.add("a", &path, &ports, &pod);
        // Dropped at its first wait.
        assert!(tokio::time::timeout(Duration::ZERO, add).await.is_err());
        // The next one waits for it, and finds it done.
        let ips = network.add("a", &path, &ports, &pod).await.unwrap();
        assert_eq!(network.ips("a"), Some(ips));
        seen_by(&netns.listen("0.0.0.0:80"), &lab.outside, NODE, 8080);
        network.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn bridged_packets_may_pass_through_netfilter_or_not() {
    lab(async |lab: Lab| {
        // What a machine with br_netfilter has switched on, and one without has not.
        let switch = "/proc/sys/net/bridge/bridge-nf-call-ip";
        if !std::path::Path::new("/proc/sys/net/bridge").exists() {
            println!("skipped: the kernel has no br_netfilter loaded");
            return;
        }
        let network = PodNetwork::open(lab.config()).await.unwrap();
        let a = Pod::start(&network, "a", &[port(8080, 80)]).await;
        let b = Pod::start(&network, "b", &[]).await;
        let server = a.netns.listen("[::]:80");
        for value in [0, 1] {
            lab.node.sh(&format!("echo {value} > {switch}tables; echo {value} > {switch}6tables"));
            for ip in [NODE, "fd99::1"] {
                seen_by(&server, &lab.outside, ip, 8080);
                seen_by(&server, &lab.node, ip, 8080);
                assert!(b.ips.iter().any(|pod| pod == seen_by(&server, &b.netns, ip, 8080)));
                assert!(!a.ips.iter().any(|pod| pod == seen_by(&server, &a.netns, ip, 8080)));
            }
            seen_by(&server, &lab.node, "127.0.0.1", 8080);
        }
        network.destroy().await.unwrap();
    });
}
