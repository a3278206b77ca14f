//! SIGKILL in the middle of writing: nothing acknowledged is lost, nothing is half there.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use store::{Range, Txn, open_embedded};

use crate::contract::Dyn;

const DIR: &str = "ORLOP_TEST_STORE_DIR";

/// Not a test of its own: the process that gets killed. Each transaction writes two keys.
#[tokio::test(flavor = "multi_thread")]
async fn crash_child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let store: Dyn = open_embedded(dir.as_ref()).unwrap();
    let start = store.current_revision().await.unwrap();
    for n in start.. {
        let txn = Txn::create(format!("/a/{n:08}"), "x".repeat(700)).and_create(format!("/b/{n:08}"), "y");
        crate::contract::committed(store.txn(txn).await.unwrap());
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {n}").unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::crash_child", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            // The harness's own words may stand on the same line.
            let line = line.unwrap();
            let Some((_, n)) = line.split_once("acknowledged ") else { continue };
            acknowledged = acknowledged.max(n.trim().parse::<u64>().unwrap());
            seen += 1;
            if seen == 100 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= 100, "round {round}: the child wrote {seen} only");

        let store: Dyn = open_embedded(dir.path()).unwrap();
        let names = |prefix: &'static str| {
            let store = store.clone();
            async move {
                let all = store.range(Range { prefix: prefix.into(), ..Range::default() }).await.unwrap();
                all.kvs
                    .iter()
                    .map(|kv| String::from_utf8_lossy(&kv.key[3..]).into_owned())
                    .collect::<Vec<_>>()
            }
        };
        let (a, b) = (names("/a/").await, names("/b/").await);
        assert_eq!(a, b, "round {round}: half a transaction");
        assert!(a.contains(&format!("{acknowledged:08}")), "round {round}: {acknowledged} is lost");
        // One revision per transaction, from 2 on, without holes.
        assert_eq!(store.current_revision().await.unwrap(), a.len() as u64 + 1);
    }
}
