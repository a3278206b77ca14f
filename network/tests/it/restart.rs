//! The daemon ends and comes back while pods go on.

use network::{Config, PodNetwork};

use crate::lab::{Lab, NODE, Pod, info, lab, port, seen_by};

#[test]
fn leases_and_host_ports_survive() {
    lab(async |lab: Lab| {
        let first = PodNetwork::open(lab.config()).await.unwrap();
        let a = Pod::start(&first, "a", &[port(8080, 80)]).await;
        let b = Pod::start(&first, "b", &[]).await;
        drop(first);
        let server = a.netns.listen("0.0.0.0:80");
        seen_by(&server, &lab.outside, NODE, 8080);

        let second = PodNetwork::open(lab.config()).await.unwrap();
        assert_eq!(second.ips("a").as_ref(), Some(&a.ips));
        seen_by(&server, &lab.outside, NODE, 8080);
        seen_by(&server, &b.netns, &a.v4(), 80);
        // Neither an address in use nor one just freed is given out.
        second.reconcile(&["a".to_owned()]).await.unwrap();
        assert_eq!(second.ips("b"), None);
        assert_eq!(lab.node.sh("ip -o link show master orlop0 | wc -l").trim(), "1");
        let c = Pod::start(&second, "c", &[]).await;
        assert_eq!(c.v4(), "10.42.0.4");
        let taken = second.add("d", &b.netns.path(), &[port(8080, 80)], &info("d")).await.unwrap_err();
        assert_eq!(taken.to_string(), "host port 8080/tcp is already used by sandbox a");
        second.remove("a", None).await.unwrap();
        assert!(!lab.outside.reaches(NODE.parse().unwrap(), 8080));
        second.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn a_crash_in_the_middle_is_cleaned_up() {
    lab(async |lab: Lab| {
        let first = PodNetwork::open(lab.config()).await.unwrap();
        let a = Pod::start(&first, "a", &[]).await;
        let b = Pod::start(&first, "b", &[]).await;
        drop(first);
        // A lease without an interface, and an interface without a lease.
        a.netns.sh("ip link del eth0");
        std::fs::remove_file(lab.state.path().join("network/leases/b.json")).unwrap();
        std::fs::write(lab.state.path().join("network/leases/broken.json"), "{").unwrap();

        let second = PodNetwork::open(lab.config()).await.unwrap();
        second.reconcile(&[]).await.unwrap();
        assert_eq!(lab.node.sh("ip -o link show master orlop0"), "");
        assert_eq!(second.status().await.addresses[0].0, 0);
        let again = second.add("b", &b.netns.path(), &[], &info("b")).await.unwrap();
        assert_eq!(again.primary().unwrap().to_string(), "10.42.0.4");
        second.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}

#[test]
fn another_range_moves_the_bridge() {
    lab(async |lab: Lab| {
        let first = PodNetwork::open(lab.config()).await.unwrap();
        drop(first);
        let moved = Config { pod_cidrs: vec!["10.77.0.0/24".parse().unwrap()], ..lab.config() };
        let second = PodNetwork::open(moved).await.unwrap();
        let a = Pod::start(&second, "a", &[]).await;
        assert_eq!(a.v4(), "10.77.0.2");
        seen_by(&a.netns.listen("0.0.0.0:80"), &lab.node, &a.v4(), 80);
        let addresses = lab.node.sh("ip -o addr show dev orlop0 scope global");
        assert!(addresses.contains("10.77.0.1/24") && !addresses.contains("10.42.0.1"), "{addresses}");
        second.destroy().await.unwrap();
        assert_eq!(lab.leftovers(), "");
    });
}
