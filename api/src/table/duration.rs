//! Durations as kubectl writes them: two significant parts at most, fewer the longer it was.

use jiff::Timestamp;

/// The time since `then`, or `<unknown>` when it is not known.
pub fn age(then: Option<Timestamp>, now: Timestamp) -> String {
    match then {
        None => "<unknown>".to_owned(),
        Some(then) => human(now.duration_since(then).as_millis() as i64),
    }
}

/// A duration of so many milliseconds, like `5s`, `3m20s`, `4h`, `2d3h`, `1y20d`.
pub fn human(milliseconds: i64) -> String {
    let seconds = milliseconds / 1000;
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |big: i64, unit: &str, small: i64, part: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{part}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(days, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_kubectl_writes_them() {
        const S: i64 = 1000;
        const M: i64 = 60 * S;
        const H: i64 = 60 * M;
        const D: i64 = 24 * H;
        for (ms, text) in [
            (-2 * S, "<invalid>"),
            (-S, "0s"),
            (0, "0s"),
            (999, "0s"),
            (S, "1s"),
            (119 * S, "119s"),
            (2 * M, "2m"),
            (2 * M + S, "2m1s"),
            (9 * M + 59 * S, "9m59s"),
            (10 * M + 59 * S, "10m"),
            (179 * M, "179m"),
            (3 * H, "3h"),
            (3 * H + 5 * M, "3h5m"),
            (8 * H + 5 * M, "8h"),
            (47 * H, "47h"),
            (48 * H, "2d"),
            (49 * H, "2d1h"),
            (8 * D, "8d"),
            (729 * D, "729d"),
            (730 * D, "2y"),
            (735 * D, "2y5d"),
            (365 * 9 * D, "9y"),
        ] {
            assert_eq!(human(ms), text);
        }
    }
}
