//! POSIX limits that cannot be raised without CAP_SYS_RESOURCE.

use keeper::plan::Rlimit;
use rustix::process::{Resource, getrlimit};

/// By number, as the kernel counts them.
const RESOURCES: [(Resource, &str); 16] = [
    (Resource::Cpu, "RLIMIT_CPU"),
    (Resource::Fsize, "RLIMIT_FSIZE"),
    (Resource::Data, "RLIMIT_DATA"),
    (Resource::Stack, "RLIMIT_STACK"),
    (Resource::Core, "RLIMIT_CORE"),
    (Resource::Rss, "RLIMIT_RSS"),
    (Resource::Nproc, "RLIMIT_NPROC"),
    (Resource::Nofile, "RLIMIT_NOFILE"),
    (Resource::Memlock, "RLIMIT_MEMLOCK"),
    (Resource::As, "RLIMIT_AS"),
    (Resource::Locks, "RLIMIT_LOCKS"),
    (Resource::Sigpending, "RLIMIT_SIGPENDING"),
    (Resource::Msgqueue, "RLIMIT_MSGQUEUE"),
    (Resource::Nice, "RLIMIT_NICE"),
    (Resource::Rtprio, "RLIMIT_RTPRIO"),
    (Resource::Rttime, "RLIMIT_RTTIME"),
];

/// Lowers limits to this process' own hard ones. Gives a sentence for each that was above.
pub fn lower(limits: &mut [Rlimit]) -> Vec<String> {
    let mut sentences = Vec::new();
    for limit in limits {
        let Some((resource, name)) = RESOURCES.get(limit.resource as usize) else { continue };
        let ours = getrlimit(*resource).maximum.unwrap_or(u64::MAX);
        if limit.hard > ours {
            sentences
                .push(format!("{name} = {} is lowered to {ours}: CAP_SYS_RESOURCE is missing", limit.hard));
            limit.hard = ours;
            limit.soft = limit.soft.min(ours);
        }
    }
    sentences
}

/// This process' own hard limit for a name such as `RLIMIT_NOFILE`.
pub fn hard(name: &str) -> Option<u64> {
    let (resource, _) = RESOURCES.iter().find(|(_, known)| *known == name)?;
    Some(getrlimit(*resource).maximum.unwrap_or(u64::MAX))
}
