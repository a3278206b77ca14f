//! Names of systemd's units for pods and containers, and the properties that stand for limits. Pure.

use crate::cgroup::values::Value;

/// Directory in a container's scope that its processes are in. The scope itself stays systemd's, which writes its own
/// idea of limits there whenever it reloads.
pub const INNER: &str = "container";
/// Directory in a container's scope that a placeholder waits in.
pub const START: &str = "start";

/// The path of a slice from the root of the file system: a dash in its name is a step. Nothing for what is no slice.
pub fn slice_path(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(String::new());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '\\' | '@');
    if name.len() > 255 || !stem.chars().all(plain) || stem.split('-').any(str::is_empty) {
        return None;
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    Some(ends.map(|end| format!("/{}.slice", &stem[..end])).collect())
}

/// A name without the dashes that would make steps of it.
pub fn flat(name: &str) -> String {
    name.replace('-', "_")
}

/// The unit that a cgroup belongs to, and the path of its directory.
pub fn unit_of(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_suffix(INNER).map_or(path, |path| path.trim_end_matches('/'));
    let unit = path.rsplit('/').next()?;
    (unit.ends_with(".scope") || unit.ends_with(".slice")).then_some((unit, path))
}

/// The slice right above a cgroup.
pub fn slice_of(path: &str) -> Option<&str> {
    path.split('/').rfind(|part| part.ends_with(".slice"))
}

/// The container's or init's name in the name of its scope.
pub fn name_of_scope(unit: &str) -> Option<&str> {
    unit.strip_prefix("orlop-")?.strip_suffix(".scope")
}

/// A property of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    /// A number; the greatest one is infinity.
    Number(&'static str, u64),
    /// A set of processors or memory nodes as bytes of bits.
    Set(&'static str, Vec<u8>),
}

const INFINITY: u64 = u64::MAX;

/// What systemd must know of a slice's limits, so that it doesn't take them back. Files that it knows nothing of are
/// written by us alone.
pub fn properties(values: &[Value]) -> Vec<Property> {
    let mut all = Vec::new();
    for Value { file, value } in values {
        let number = || if value == "max" { Some(INFINITY) } else { value.parse().ok() };
        let mut put =
            |name, number: Option<u64>| all.extend(number.map(|number| Property::Number(name, number)));
        match file.as_str() {
            "cpu.weight" => put("CPUWeight", number()),
            "cpu.max" => {
                let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
                let period = period.parse::<u64>().ok();
                put("CPUQuotaPeriodUSec", period);
                put(
                    "CPUQuotaPerSecUSec",
                    match quota {
                        "max" => Some(INFINITY),
                        quota => per_second(quota.parse().ok(), period),
                    },
                );
            }
            "memory.min" => put("MemoryMin", number()),
            "memory.low" => put("MemoryLow", number()),
            "memory.high" => put("MemoryHigh", number()),
            "memory.max" => put("MemoryMax", number()),
            "memory.swap.max" => put("MemorySwapMax", number()),
            "pids.max" => put("TasksMax", number()),
            "io.weight" => put("IOWeight", value.strip_prefix("default ").and_then(|text| text.parse().ok())),
            "cpuset.cpus" => all.extend(bits(value).map(|bits| Property::Set("AllowedCPUs", bits))),
            "cpuset.mems" => all.extend(bits(value).map(|bits| Property::Set("AllowedMemoryNodes", bits))),
            _ => {}
        }
    }
    all
}

/// Microseconds of processor time in a second; systemd counts in hundredths of a processor, so it's rounded up.
fn per_second(quota: Option<u64>, period: Option<u64>) -> Option<u64> {
    let exact = u128::from(quota?) * 1_000_000 / u128::from(period.filter(|period| *period > 0)?);
    u64::try_from(exact.div_ceil(10_000) * 10_000).ok()
}

/// A list such as `0-2,5` as bits, the lowest first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last > 8191 {
            return None;
        }
        bits.resize(bits.len().max(last / 8 + 1), 0);
        for number in first..=last {
            bits[number / 8] |= 1 << (number % 8);
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_nested_by_dashes() {
        let path = |name| slice_path(name);
        assert_eq!(path("a-b-c.slice").as_deref(), Some("/a.slice/a-b.slice/a-b-c.slice"));
        assert_eq!(path("kubepods.slice").as_deref(), Some("/kubepods.slice"));
        assert_eq!(path("-.slice").as_deref(), Some(""));
        for bad in [
            "a--b.slice",
            "-a.slice",
            "a-.slice",
            "a",
            ".slice",
            "/a.slice",
            "a/b.slice",
            "a\n.slice",
            "../a.slice",
        ] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn units_are_found_in_paths() {
        let path = "/kubepods.slice/kubepods-podx.slice/orlop-12.scope/container";
        let scope = "/kubepods.slice/kubepods-podx.slice/orlop-12.scope";
        assert_eq!(unit_of(path), Some(("orlop-12.scope", scope)));
        assert_eq!(unit_of(scope), Some(("orlop-12.scope", scope)));
        assert_eq!(unit_of("/a.slice/a-b.slice"), Some(("a-b.slice", "/a.slice/a-b.slice")));
        assert_eq!(unit_of("/a/b"), None);
        assert_eq!(slice_of(path), Some("kubepods-podx.slice"));
        assert_eq!(name_of_scope("orlop-12.scope"), Some("12"));
        assert_eq!(name_of_scope("session-1.scope"), None);
    }

    #[test]
    fn limits_become_properties() {
        let value = |file: &str, value: &str| Value { file: file.into(), value: value.into() };
        let of = |file, text| properties(&[value(file, text)]);
        assert_eq!(of("cpu.weight", "79"), [Property::Number("CPUWeight", 79)]);
        let cpu = [
            Property::Number("CPUQuotaPeriodUSec", 100_000),
            Property::Number("CPUQuotaPerSecUSec", 130_000),
        ];
        assert_eq!(of("cpu.max", "12345 100000"), cpu);
        assert_eq!(of("cpu.max", "max 100000")[1], Property::Number("CPUQuotaPerSecUSec", u64::MAX));
        assert_eq!(of("memory.max", "1024"), [Property::Number("MemoryMax", 1024)]);
        assert_eq!(of("pids.max", "max"), [Property::Number("TasksMax", u64::MAX)]);
        assert_eq!(of("cpuset.cpus", "0-2,9"), [Property::Set("AllowedCPUs", vec![7, 2])]);
        assert_eq!(of("io.weight", "default 500"), [Property::Number("IOWeight", 500)]);
        assert_eq!(of("hugetlb.2MB.max", "0"), []);
        assert_eq!(of("cpuset.cpus", "x"), []);
    }
}
