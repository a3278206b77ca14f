//! Which images to remove. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::ImageSettings;
use crate::pod::step::until;

/// An image as the runtime lists it, and what the kubelet remembers of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Never to be removed.
    pub pinned: bool,
    /// A container uses it.
    pub used: bool,
    /// When it was first listed.
    pub first: Timestamp,
    /// When it was last seen in use; `None`: never.
    pub last: Option<Timestamp>,
}

/// The disk that the images are on, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// In all.
    pub capacity: u64,
    /// Free for everybody.
    pub available: u64,
}

/// What to remove.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// Unused for longer than the settings allow, whatever the disk says.
    pub old: Vec<String>,
    /// Bytes to free; 0 while the disk is not too full.
    pub goal: u64,
    /// For the goal: with their sizes, those that were not used for longest first.
    pub candidates: Vec<(String, u64)>,
}

/// Why nothing can be planned.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// The disk cannot be that.
    #[error("invalid capacity {0} on image filesystem")]
    Capacity(u64),
}

/// Decides. What is used or pinned stays.
pub fn plan(
    images: &[Seen],
    disk: Disk,
    settings: &ImageSettings,
    now: Timestamp,
) -> Result<Plan, PlanError> {
    let free: Vec<&Seen> = images.iter().filter(|i| !i.used && !i.pinned).collect();
    let idle = |image: &Seen| until(image.last.unwrap_or(image.first), now);
    let aged =
        |image: &&&Seen| settings.maximum_gc_age > Duration::ZERO && idle(image) > settings.maximum_gc_age;
    let old: Vec<String> = free.iter().filter(aged).map(|i| i.id.clone()).collect();
    if disk.capacity == 0 {
        return Err(PlanError::Capacity(disk.capacity));
    }
    let available = disk.available.min(disk.capacity);
    let used_percent = 100 - available.saturating_mul(100) / disk.capacity;
    if used_percent < u64::from(settings.gc_high_threshold_percent)
        || settings.gc_high_threshold_percent >= 100
    {
        return Ok(Plan { old, ..Plan::default() });
    }
    let wanted = disk.capacity / 100 * u64::from(100 - settings.gc_low_threshold_percent.min(100));
    let goal = wanted.saturating_sub(available);
    let mut young_enough: Vec<&&Seen> = free
        .iter()
        .filter(|i| until(i.first, now) >= settings.minimum_gc_age && !old.contains(&i.id))
        .collect();
    young_enough.sort_by_key(|i| (i.last.unwrap_or(Timestamp::MIN), i.first));
    let candidates = young_enough.into_iter().map(|i| (i.id.clone(), i.size)).collect();
    Ok(Plan { old, goal, candidates })
}

/// What the kubelet remembers of images between two looks.
#[derive(Debug, Default)]
pub struct Memory {
    seen: BTreeMap<String, (Timestamp, Option<Timestamp>)>,
}

impl Memory {
    /// Somebody uses it now.
    pub fn touch(&mut self, id: &str, now: Timestamp) {
        self.seen.entry(id.to_owned()).or_insert((now, None)).1 = Some(now);
    }

    /// Takes note of what is listed now (id, size, pinned, used), and forgets the rest.
    pub fn update(&mut self, listed: Vec<(String, u64, bool, bool)>, now: Timestamp) -> Vec<Seen> {
        self.seen.retain(|id, _| listed.iter().any(|l| l.0 == *id));
        let each = |(id, size, pinned, used): (String, u64, bool, bool)| {
            let known = self.seen.entry(id.clone()).or_insert((now, None));
            if used {
                known.1 = Some(now);
            }
            Seen { id, size, pinned, used, first: known.0, last: known.1 }
        };
        listed.into_iter().map(each).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("a time")
    }

    /// `id size first last flags`, times in seconds before now; `-`: never used.
    fn images(text: &str) -> Vec<Seen> {
        let one = |line: &str| {
            let parts: Vec<&str> = line.split_whitespace().collect();
            Seen {
                id: parts[0].into(),
                size: parts[1].parse().expect("bytes"),
                first: at(-parts[2].parse::<i64>().expect("seconds")),
                last: parts[3].parse::<i64>().ok().map(|s| at(-s)),
                used: parts.contains(&"used"),
                pinned: parts.contains(&"pinned"),
            }
        };
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(one).collect()
    }

    fn check(available: u64, settings: ImageSettings, expected: &str) {
        let images = images(
            "never 10 900 -
             long-ago 20 900 800
             lately 30 900 5
             young 40 60 -
             running 50 900 0 used
             kept 60 900 900 pinned",
        );
        let disk = Disk { capacity: 1000, available };
        let plan = plan(&images, disk, &settings, at(0)).expect("a plan");
        let ids: Vec<&str> = plan.candidates.iter().map(|c| c.0.as_str()).collect();
        assert_eq!(format!("old=[{}] goal={} [{}]", plan.old.join(" "), plan.goal, ids.join(" ")), expected);
    }

    #[test]
    fn space_is_made_when_the_disk_is_too_full() {
        let settings = ImageSettings::default;
        check(160, settings(), "old=[] goal=0 []");
        check(150, settings(), "old=[] goal=50 [never long-ago lately]");
        check(0, settings(), "old=[] goal=200 [never long-ago lately]");
        check(0, ImageSettings { gc_high_threshold_percent: 100, ..settings() }, "old=[] goal=0 []");
        let eager = ImageSettings { minimum_gc_age: Duration::ZERO, ..settings() };
        check(0, eager, "old=[] goal=200 [never young long-ago lately]");
    }

    #[test]
    fn the_old_go_whatever_the_disk_says() {
        let settings = ImageSettings { maximum_gc_age: Duration::from_secs(700), ..ImageSettings::default() };
        check(900, settings.clone(), "old=[never long-ago] goal=0 []");
        check(0, settings, "old=[never long-ago] goal=200 [lately]");
    }

    #[test]
    fn a_disk_without_capacity_is_an_error() {
        let none = Disk { capacity: 0, available: 0 };
        let text = plan(&[], none, &ImageSettings::default(), at(0)).expect_err("no disk").to_string();
        assert_eq!(text, "invalid capacity 0 on image filesystem");
    }

    #[test]
    fn memory_keeps_what_is_listed() {
        let mut memory = Memory::default();
        let list = |used| vec![("a".to_owned(), 1, false, used)];
        assert_eq!(memory.update(list(true), at(0))[0].last, Some(at(0)));
        let seen = memory.update(list(false), at(9));
        assert_eq!((seen[0].first, seen[0].last), (at(0), Some(at(0))));
        memory.touch("a", at(10));
        assert_eq!(memory.update(list(false), at(11))[0].last, Some(at(10)));
        memory.update(vec![], at(12));
        assert_eq!(memory.update(list(false), at(13))[0].first, at(13));
    }
}
