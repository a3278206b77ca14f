//! Users that are not who they seem.

use anyhow::ensure;
use cri_api::Cri;
use cri_api::v1::*;
use serde_json::json;

use crate::archive::Member;
use crate::needs_root;
use crate::world::{World, context};

/// What a user's name must come to.
#[derive(Debug, Clone, Copy)]
enum Want {
    /// User and group.
    Is(u32, u32),
    /// Refused: who it would be nobody knows.
    Refused,
}
use Want::{Is, Refused};

/// Names as an image's USER or as run_as_username, and what they are.
const NAMES: [(&str, Want); 34] = [
    ("root", Is(0, 0)),
    ("web", Is(1000, 1000)),
    ("web:root", Is(1000, 0)),
    ("1000", Is(1000, 1000)),
    ("1000:7", Is(1000, 7)),
    // A user whose name is a number, with the id 0: the number is meant.
    ("1001", Is(1001, 0)),
    ("0000", Is(0, 0)),
    ("0001000", Is(1000, 1000)),
    ("2147483647", Is(2_147_483_647, 0)),
    ("2147483648", Refused),
    ("4294967295", Refused),
    ("4294967296", Refused),
    ("4294968296", Refused),
    ("18446744073709551616", Refused),
    ("18446744073709552616", Refused),
    ("-1", Refused),
    ("+1000", Refused),
    ("-0", Refused),
    (" 1000", Refused),
    ("1000 ", Refused),
    ("1000\n", Refused),
    ("0x3e8", Refused),
    ("1e3", Refused),
    ("1000.0", Refused),
    ("1000:4294967296", Refused),
    ("1000:-1", Refused),
    ("1000:nobody", Refused),
    ("1000:1000:1000", Refused),
    ("web ", Refused),
    ("Web", Refused),
    ("../root", Refused),
    ("web\u{0}", Refused),
    ("nobody", Refused),
    ("*", Refused),
];

async fn run_as(
    world: &World,
    pod: &crate::world::Pod,
    change: impl FnOnce(&mut ContainerConfig),
) -> anyhow::Result<Result<(u32, u32), String>> {
    let ran = world.run(pod, &["report"], change).await?;
    let ended = match ran {
        Ok(ended) => ended,
        Err(status) => return Ok(Err(status.message().to_owned())),
    };
    let id = |word| -> anyhow::Result<u32> {
        let ids: Vec<u32> = ended.line(word).split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(ids.len() == 4 && ids.iter().all(|id| *id == ids[0]), "{}", ended.output);
        Ok(ids[0])
    };
    Ok(Ok((id("Uid")?, id("Gid")?)))
}

fn judge(name: &str, want: Want, got: &Result<(u32, u32), String>) -> anyhow::Result<()> {
    match (want, got) {
        (Is(uid, gid), Ok(got)) => ensure!((uid, gid) == *got, "{name:?} ran as {got:?}"),
        (Refused, Err(why)) => println!("{name:?}: {why}"),
        _ => anyhow::bail!("{name:?} should be {want:?} and is {got:?}"),
    }
    Ok(())
}

/// `exec -u` read a user's name leniently, and ran as somebody else.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_30892_user_names_read_leniently() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    for (name, want) in NAMES {
        let got = run_as(&world, &pod, |config| context(config).run_as_username = name.to_owned()).await?;
        judge(name, want, &got)?;
    }
    // Execs run as the container does.
    let id = world.serve(&pod, &["sleep"], |config| context(config).run_as_username = "web:7".into()).await?;
    let ended = world.exec(&id, &["/attack", "report"]).await?;
    ensure!(
        ended.line("Uid").starts_with("1000\t1000") && ended.line("Gid").starts_with("7\t7"),
        "{}",
        ended.output
    );
    // A user and a group that no 32-bit id holds.
    for (user, group) in [
        (-1, None),
        (1 << 32, None),
        ((1 << 32) + 1000, None),
        (1000, Some(-1)),
        (1000, Some(1 << 32)),
        (0xffff_ffff, None),
    ] {
        let got = run_as(&world, &pod, |config| {
            context(config).run_as_user = Some(Int64Value { value: user });
            context(config).run_as_group = group.map(|value| Int64Value { value });
        })
        .await?;
        ensure!(got.is_err(), "{user}:{group:?} ran as {got:?}");
    }
    world.end().await
}

/// An image's USER above 2³² wrapped around to root, past `runAsNonRoot`.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_40635_image_user_that_wraps_around() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    for (name, want) in NAMES {
        // A NUL byte is no JSON string that a registry would take; the name with it is tried above.
        let image = world.image("user", json!({"User": name}), Vec::new()).await?;
        let got = run_as(&world, &pod, |config| {
            config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
        })
        .await?;
        judge(name, want, &got)?;
        // What the kubelet goes by for runAsNonRoot: a number, or a name, but never a number that is not the one.
        let request = ImageStatusRequest {
            image: Some(ImageSpec { image: image.clone(), ..Default::default() }),
            verbose: false,
        };
        let told = world.cri.image_status(request).await?.image;
        let told = told.ok_or_else(|| anyhow::anyhow!("no image"))?;
        match (want, told.uid) {
            (Is(uid, _), Some(told)) => ensure!(i64::from(uid) == told.value, "{name:?} is told as {told:?}"),
            (Is(..), None) => ensure!(!told.username.is_empty(), "{name:?}: neither user nor number is told"),
            // Whatever the kubelet makes of it, it is refused when it is run.
            (Refused, _) => {}
        }
    }
    world.end().await
}

/// `runAsNonRoot` was passed by users whose name or number in the image meant root.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_46680_root_by_another_name() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start_as("server").await?;
    let passwd = "root:x:0:0::/:/x\n1001:x:0:0::/:/x\nsneaky:x:0:0::/:/x\n4294967296:x:0:0::/:/x\nweb:x:1000:0::/:/x\n";
    let users = [
        ("1001", true),
        ("1000", true),
        ("0000", false),
        ("0", false),
        ("", false),
        ("0:1000", false),
        ("00:0", false),
        ("sneaky", false),
        ("web", false),
        ("root", false),
        ("4294967296", false),
        ("2147483648", false),
    ];
    let mut manifests = String::new();
    for (number, (user, _)) in users.iter().enumerate() {
        let members = vec![Member::file("etc/passwd", passwd).mode(0o644)];
        let image = world.image(&format!("nonroot{number}"), json!({"User": user}), members).await?;
        manifests += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: nonroot{number}}}\nspec:\n  restartPolicy: Never\n  \
             terminationGracePeriodSeconds: 0\n  securityContext: {{runAsNonRoot: true}}\n  containers:\n  \
             - {{name: c, image: '{image}', imagePullPolicy: Never, command: [/attack, report]}}\n"
        );
    }
    world.node.apply(&manifests).await?;
    for (number, (user, runs)) in users.into_iter().enumerate() {
        let name = format!("nonroot{number}");
        let pod = world
            .node
            .wait_for(&format!("pod/{name}"), "done or refused", |pod| {
                let status = &pod["status"]["containerStatuses"][0];
                pod["status"]["phase"] == "Succeeded"
                    || status["state"]["waiting"]["reason"].as_str().is_some_and(|r| r.starts_with("Create"))
            })
            .await?;
        let ran = pod["status"]["phase"] == "Succeeded";
        ensure!(ran == runs, "USER {user:?} with runAsNonRoot: {}", pod["status"]);
        if ran {
            let logs = world.node.kubectl(&["logs", &name]).await?.ok()?;
            ensure!(logs.contains(&format!("Uid:\t{user}\t")), "USER {user:?} ran as {logs}");
        } else {
            println!(
                "USER {user:?}: {}",
                pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
            );
        }
    }
    world.node.kubectl(&["delete", "pods", "--all"]).await?.ok()?;
    world.end().await
}
