//! What the tests stand on: guests on one network that are cut off, frozen, killed and booted again.

use anyhow::ensure;
use vm::guest::Network;
use vm::{GuestOptions, Lab, eventually};

vm::cases![guests_meet_are_cut_off_frozen_and_killed];

async fn guests_meet_are_cut_off_frozen_and_killed(lab: &Lab) -> anyhow::Result<()> {
    let network = Network::new()?;
    let options = |name: &str, number| GuestOptions {
        lan: Some(network.place(number)),
        durable: true,
        cpus: 1,
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
