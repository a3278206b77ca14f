//! How many replicas each set gets next. Pure numbers: no objects in here.

/// A replica set, as the rollout sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// `spec.replicas`.
    pub wanted: i32,
    /// `status.availableReplicas`.
    pub available: i32,
}

/// How a deployment wants to be rolled out, in pods.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `spec.replicas`.
    pub replicas: i32,
    /// How many more there may be for a while.
    pub surge: i32,
    /// How many may be missing for a while.
    pub unavailable: i32,
}

/// Resolves `maxSurge` (rounded up) and `maxUnavailable` (rounded down); both zero would stand still, so
/// one may then be missing. Percentages are of `replicas`.
pub fn limits(replicas: i32, surge: &str, unavailable: &str) -> Limits {
    let part = |text: &str, up: bool| -> i32 {
        let Some(percent) = text.strip_suffix('%') else { return text.parse().unwrap_or(0) };
        let of = i64::from(replicas) * percent.parse::<i64>().unwrap_or(0);
        i32::try_from(if up { (of + 99) / 100 } else { of / 100 }).unwrap_or(i32::MAX)
    };
    let (surge, unavailable) = (part(surge, true), part(unavailable, false).min(replicas));
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    Limits { replicas, surge, unavailable }
}

/// The next `spec.replicas` of the new set and of the old ones (oldest first).
pub fn roll(limits: Limits, new: &Set, old: &[Set]) -> (i32, Vec<i32>) {
    let total = new.wanted + old.iter().map(|set| set.wanted).sum::<i32>();
    let grown = if new.wanted < limits.replicas {
        let room = (limits.replicas + limits.surge - total).max(0);
        new.wanted + room.min(limits.replicas - new.wanted)
    } else {
        limits.replicas
    };
    if grown != new.wanted {
        // One direction at a time, so that each step is judged by what it led to.
        return (grown, old.iter().map(|set| set.wanted).collect());
    }
    (new.wanted, shrink(limits, new, old, total))
}

/// Takes from the old sets what the limits allow: first what isn't available anyway.
fn shrink(limits: Limits, new: &Set, old: &[Set], total: i32) -> Vec<i32> {
    let least = limits.replicas - limits.unavailable;
    let new_missing = (new.wanted - new.available).max(0);
    let mut budget = (total - least - new_missing).max(0);
    let mut next: Vec<i32> = old.iter().map(|set| set.wanted).collect();
    for (wanted, set) in next.iter_mut().zip(old) {
        let idle = (set.wanted - set.available).clamp(0, budget);
        *wanted -= idle;
        budget -= idle;
    }
    let available = new.available + old.iter().map(|set| set.available).sum::<i32>();
    let mut budget = (available - least).max(0);
    for (wanted, set) in next.iter_mut().zip(old) {
        // What is available is only taken while more than the least stays.
        let taken = (*wanted).min(set.available).min(budget).max(0);
        *wanted -= taken;
        budget -= taken;
    }
    next
}

/// Replicas for sets that share a deployment whose `replicas` changed in the middle of a rollout: in
/// proportion to what they have; the largest sets take the rounding.
pub fn rescale(limits: Limits, sets: &[i32]) -> Vec<i32> {
    let total: i32 = sets.iter().sum();
    let allowed = if limits.replicas > 0 { limits.replicas + limits.surge } else { 0 };
    if total == 0 || total == allowed {
        return sets.to_vec();
    }
    let mut next: Vec<i32> = sets
        .iter()
        .map(|n| i32::try_from(i64::from(*n) * i64::from(allowed) / i64::from(total)).unwrap_or(*n))
        .collect();
    let mut order: Vec<usize> = (0..sets.len()).filter(|i| sets[*i] > 0).collect();
    order.sort_by_key(|i| std::cmp::Reverse(sets[*i]));
    let mut rest = allowed - next.iter().sum::<i32>();
    for i in order.into_iter().cycle() {
        if rest <= 0 {
            break;
        }
        next[i] += 1;
        rest -= 1;
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(wanted: i32, available: i32) -> Set {
        Set { wanted, available }
    }

    /// Rolls until nothing changes, with every pod becoming available at once; the steps as text.
    fn course(limits: Limits, mut new: Set, mut old: Vec<Set>) -> String {
        let mut steps = vec![];
        for _ in 0..50 {
            let (n, o) = roll(limits, &new, &old);
            if n == new.wanted && o.iter().zip(&old).all(|(n, set)| *n == set.wanted) {
                break;
            }
            new = set(n, n);
            old = o.iter().map(|n| set(*n, *n)).collect();
            steps.push(format!("{n}+{}", o.iter().sum::<i32>()));
            let (total, there) = (n + o.iter().sum::<i32>(), limits.replicas);
            assert!(total <= there + limits.surge && total >= there - limits.unavailable, "{steps:?}");
        }
        steps.join(" ")
    }

    #[test]
    fn a_rollout_stays_within_its_limits() {
        let at_ease = limits(4, "25%", "25%");
        assert_eq!(course(at_ease, set(0, 0), vec![set(4, 4)]), "1+4 1+2 3+2 3+0 4+0");
        let one_by_one = limits(2, "1", "0");
        assert_eq!(course(one_by_one, set(0, 0), vec![set(2, 2)]), "1+2 1+1 2+1 2+0");
        let no_surge = limits(2, "0", "1");
        assert_eq!(course(no_surge, set(0, 0), vec![set(2, 2)]), "0+1 1+1 1+0 2+0");
    }

    #[test]
    fn a_new_set_that_never_comes_up_costs_no_more_than_allowed() {
        let limits = limits(4, "1", "1");
        assert_eq!(roll(limits, &set(1, 0), &[set(4, 4)]), (1, vec![3]));
        assert_eq!(roll(limits, &set(2, 0), &[set(3, 3)]), (2, vec![3]));
    }

    #[test]
    fn old_pods_that_are_down_go_first() {
        let limits = limits(4, "0", "1");
        assert_eq!(roll(limits, &set(1, 1), &[set(2, 0), set(1, 1)]).1, [1, 1]);
    }

    #[test]
    fn limits_round_as_documented() {
        let l = limits(3, "25%", "25%");
        assert_eq!((l.surge, l.unavailable), (1, 0));
        let l = limits(3, "0", "0");
        assert_eq!((l.surge, l.unavailable), (0, 1));
    }

    #[test]
    fn rescaling_keeps_proportions() {
        assert_eq!(rescale(limits(20, "0", "1"), &[4, 6]), [8, 12]);
        assert_eq!(rescale(limits(5, "0", "1"), &[1, 2]).iter().sum::<i32>(), 5);
        assert_eq!(rescale(limits(0, "1", "1"), &[1, 2]), [0, 0]);
    }
}
