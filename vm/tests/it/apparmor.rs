//! AppArmor where the kernel has it: profiles are in force, and what can't be given is refused.

use anyhow::{Context, ensure};
use cri_api::Cri;
use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::*;
use vm::pods::{Pod, Wanted};
use vm::{Lab, Node, eventually};

vm::cases![the_default_profile_is_in_force, profiles_are_chosen_by_name, without_a_parser_the_node_says_so,];

/// The profile of a process: its name and mode, or `unconfined`.
const CURRENT: &str = "cat /proc/self/attr/apparmor/current";

fn asked(kind: ProfileType, name: &str) -> LinuxContainerSecurityContext {
    let profile = SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() };
    LinuxContainerSecurityContext { apparmor: Some(profile), ..Default::default() }
}

/// Shell loop that lives until it is killed, under a security context.
fn under(context: LinuxContainerSecurityContext, script: &str) -> Wanted {
    let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
    Wanted {
        config: ContainerConfig { linux: Some(linux), ..Default::default() },
        ..Wanted::script(&format!("{script}; exec sleep 1000"))
    }
}

async fn the_default_profile_is_in_force(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    // Whoever says nothing gets it as well. Everything else that would hold a container back is left away.
    let open = LinuxContainerSecurityContext {
        capabilities: Some(Capability { add_capabilities: vec!["ALL".into()], ..Default::default() }),
        seccomp: Some(SecurityProfile { profile_type: ProfileType::Unconfined.into(), ..Default::default() }),
        ..Default::default()
    };
    for context in [open.clone(), LinuxContainerSecurityContext { no_new_privs: true, ..open.clone() }] {
        let container = pod.container(under(context, CURRENT)).await?;
        eventually("the program's word", || async {
            ensure!(container.log().await? == "orlop-default (enforce)", "{}", container.log().await?);
            Ok(())
        })
        .await?;
        ensure!(container.exec(CURRENT).await? == "orlop-default (enforce)", "an exec is confined as well");
        // The mount is writable for who may remount it: only the profile forbids that.
        let remount = container.exec("mount -o remount,rw /proc/sys 2>&1 || true").await?;
        ensure!(!remount.is_empty(), "mount went through");
        ensure!(container.exec("mkdir -p /m && mount -t tmpfs t /m 2>/dev/null || echo no").await? == "no");
        // What containers do all day.
        let daily = "set -e; mkdir /d; echo x > /d/f; mv /d/f /d/g; rm -r /d; sleep 100 & kill $!; \
                     cat /proc/1/status > /dev/null; ls /proc/1/fd > /dev/null; echo done";
        ensure!(container.exec(daily).await? == "done");
        container.kill().await?;
    }
    let unconfined =
        LinuxContainerSecurityContext { apparmor: asked(ProfileType::Unconfined, "").apparmor, ..open };
    let container = pod.container(under(unconfined, ":")).await?;
    ensure!(container.exec(CURRENT).await? == "unconfined");
    // The test above fails for the profile alone.
    ensure!(container.exec("mkdir -p /m && mount -t tmpfs t /m && echo yes").await? == "yes");
    pod.remove().await
}

async fn profiles_are_chosen_by_name(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let profile = "profile vm-no-tmp flags=(attach_disconnected) { file, capability, network, signal, ptrace, \
                   deny /tmp/** w, }";
    node.guest.write("/run/vm-no-tmp", profile.as_bytes()).await?;
    node.guest.ok("apparmor_parser -r -K /run/vm-no-tmp").await?;
    let pod = Pod::start(&node).await?;
    let container = pod.container(under(asked(ProfileType::Localhost, "vm-no-tmp"), ":")).await?;
    ensure!(container.exec(CURRENT).await? == "vm-no-tmp (enforce)");
    ensure!(container.exec("mkdir -p /tmp; echo 2>/dev/null > /tmp/x || echo no").await? == "no");
    #[expect(deprecated, reason = "old kubelets set this field")]
    let old = LinuxContainerSecurityContext {
        apparmor_profile: "localhost/vm-no-tmp".into(),
        ..Default::default()
    };
    let container = pod.container(under(old, ":")).await?;
    ensure!(container.exec(CURRENT).await? == "vm-no-tmp (enforce)", "the old field");

    let missing = pod.create(under(asked(ProfileType::Localhost, "vm-missing"), ":")).await;
    let said = missing.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(said.contains("vm-missing") && said.contains("is not loaded"), "create: {said:?}");

    // An unloaded profile stays in force where it is; there are no new programs under it.
    let container = pod.create(under(asked(ProfileType::Localhost, "vm-no-tmp"), ":")).await?;
    node.guest.ok("apparmor_parser -R /run/vm-no-tmp").await?;
    let request = StartContainerRequest { container_id: container.id.clone() };
    let refused = node.cri().await?.start_container(request).await.err().context("it was started")?;
    ensure!(refused.message().contains("vm-no-tmp"), "start: {refused}");
    pod.remove().await?;

    let pod = Pod::start_with(&node, |config| {
        let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        if let Some(context) = context {
            context.privileged = true;
        }
    })
    .await?;
    let privileged =
        LinuxContainerSecurityContext { privileged: true, ..asked(ProfileType::RuntimeDefault, "") };
    let container = pod.container(under(privileged, ":")).await?;
    ensure!(container.exec(CURRENT).await? == "unconfined", "privileged containers are not confined");
    pod.remove().await
}

async fn without_a_parser_the_node_says_so(lab: &Lab) -> anyhow::Result<()> {
    let guest = lab.plain().await?;
    // Other nodes of this guest have loaded it.
    let hide = "cd /sys/kernel/security/apparmor; \
                ! grep -q '^orlop-default ' profiles || printf %s orlop-default > .remove; \
                mv /usr/sbin/apparmor_parser /usr/sbin/hidden";
    guest.ok(hide).await?;
    let checked = without_parser(lab).await;
    guest.ok("mv /usr/sbin/hidden /usr/sbin/apparmor_parser").await?;
    checked?;
    // The next daemon has it again, for those that share this guest too.
    let node = lab.own_node("parser").await?;
    let pod = Pod::start(&node).await?;
    let container = pod.container(under(asked(ProfileType::RuntimeDefault, ""), ":")).await?;
    ensure!(container.exec(CURRENT).await? == "orlop-default (enforce)");
    pod.remove().await?;
    node.stop().await
}

async fn without_parser(lab: &Lab) -> anyhow::Result<()> {
    let node: Node = lab.own_node("noparser").await?;
    let info = eventually("the node's word", || async {
        let info = node.cri().await?.status(StatusRequest { verbose: true }).await?.info;
        let text = info.get("apparmor").cloned().unwrap_or_default();
        ensure!(text.contains("there is no apparmor_parser"), "{text}");
        Ok(text)
    })
    .await?;
    ensure!(info.contains("\"enabled\":true"), "{info}");
    let log = node.guest.ok(&format!("cat {}/daemon.log", node.root)).await?;
    ensure!(log.contains("there is no apparmor_parser: install it"), "the log says nothing of it");
    let pod = Pod::start(&node).await?;
    // Who asks for it doesn't get less; who asks for nothing runs.
    let refused = pod.create(under(asked(ProfileType::RuntimeDefault, ""), ":")).await;
    let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(said.contains("there is no apparmor_parser"), "create: {said:?}");
    let container = pod.container(Wanted::script("exec sleep 1000")).await?;
    ensure!(container.exec(CURRENT).await? == "unconfined");
    pod.remove().await?;
    node.stop().await
}
