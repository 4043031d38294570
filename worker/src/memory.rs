//! How much memory this process may take, as its container's cgroup says.

/// By version of cgroups: <https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files>.
const LIMIT_FILES: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
/// A machine has no such memory: the first version says "no limit" by a number beyond it.
const NO_LIMIT: u64 = 1 << 50;

/// In bytes; `None` where there is no limit, or none that can be read.
pub(crate) fn limit() -> Option<u64> {
    LIMIT_FILES.iter().find_map(|file| std::fs::read_to_string(file).ok()).and_then(|told| parse(&told))
}

fn parse(told: &str) -> Option<u64> {
    told.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_say_how_much_and_that_there_is_no_limit() {
        for (told, limit) in
            [("536870912\n", Some(536_870_912)), ("max\n", None), ("9223372036854771712\n", None), ("", None)]
        {
            assert_eq!(parse(told), limit, "{told:?}");
        }
    }
}
