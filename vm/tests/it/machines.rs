//! What the tests stand on: guests on one network that are cut off, frozen, killed and booted again.

use anyhow::ensure;
use vm::guest::Network;
use vm::outage::Disk;
use vm::{GuestOptions, Lab, eventually, place};

vm::cases![guests_meet_are_cut_off_frozen_and_killed, what_was_flushed_outlives_a_power_cut];

async fn guests_meet_are_cut_off_frozen_and_killed(lab: &Lab) -> anyhow::Result<()> {
    let network = Network::new()?;
    let options = |name: &str, number| GuestOptions {
        lan: Some(network.place(number)),
        durable: true,
        memory_mib: 512,
        swap_mib: 0,
        ..lab.options(name)
    };
    let (one, two) = tokio::join!(lab.boot(options("one", 1)), lab.boot(options("two", 2)));
    let (one, two) = (one?, two?);
    let ping = || async { one.run("ping -c 1 -W 1 10.77.0.2").await?.ok() };
    eventually("the other guest to answer", ping).await?;

    two.set_link(false).await?;
    ensure!(ping().await.is_err(), "a guest without a cable answers");
    ensure!(two.ok("hostname").await? == "two", "commands have a way of their own");
    two.set_link(true).await?;
    eventually("the cable to work again", ping).await?;

    two.freeze().await?;
    ensure!(ping().await.is_err(), "a frozen guest answers");
    two.thaw().await?;
    eventually("the guest to go on", ping).await?;

    let before = two.boot_id().await?;
    two.ok("echo flushed > /root/kept && sync /root/kept && echo not > /root/maybe").await?;
    two.cut_power().await?;
    ensure!(ping().await.is_err(), "a dead guest answers");
    two.power_on().await?;
    ensure!(two.boot_id().await? != before, "it never went down");
    ensure!(two.ok("cat /root/kept").await? == "flushed");
    eventually("the guest to answer again", ping).await.map(|_| ())
}

async fn what_was_flushed_outlives_a_power_cut(lab: &Lab) -> anyhow::Result<()> {
    let directory = place::run_directory()?.join("forgets");
    std::fs::create_dir_all(&directory)?;
    let disk = Disk::new(&directory, 256)?;
    let options = GuestOptions {
        durable: true,
        memory_mib: 512,
        swap_mib: 0,
        data: Some(disk.backing()),
        ..lab.options("forgets")
    };
    let guest = lab.boot(options).await?;
    guest.ok("mountpoint -q /data || { lsblk; dmesg | tail; false; }").await?;
    for round in 1..=2 {
        let write =
            "seq 100000 > /data/kept && sync && dd if=/dev/zero of=/data/lost bs=64k count=64 oflag=direct";
        guest.ok(write).await?;
        guest.cut_power().await?;
        let outcome = disk.settle(round)?;
        println!("  {outcome:?}");
        ensure!(outcome.flushed > 0 && outcome.lost > 0, "{outcome:?}");
        guest.power_on().await?;
        ensure!(guest.ok("wc -l < /data/kept").await? == "100000");
    }
    Ok(())
}
