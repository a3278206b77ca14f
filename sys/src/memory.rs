//! This program's own memory.

/// Gives memory that is free back to the system, wherever it lies. By itself the allocator gives back only what lies at
/// its end, so one small thing that lives on keeps all that was freed before it. Takes a millisecond or so for each ten
/// megabytes: for a thread that may block.
pub fn give_back() {
    // SAFETY: malloc_trim only concerns memory that nobody has, under the allocator's own locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    /// Bytes of memory that this process has.
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
    }

    #[test]
    fn what_lies_before_something_that_lives_is_given_back() {
        const MANY: usize = 64 << 10;
        let mut all: Vec<Box<[u8; 1024]>> = (0..MANY).map(|_| Box::new([1; 1024])).collect();
        let last = all.pop();
        let before = resident();
        drop(all);
        give_back();
        let freed = before.saturating_sub(resident());
        assert!(freed > MANY * 512, "{freed} bytes of {} were given back", MANY * 1024);
        assert!(last.is_some_and(|last| last[1023] == 1));
    }
}
