//! How much memory this process may use, and what of it caches the indexes.

use std::{fs, path::Path};

/// Of the memory, one part in so many caches the indexes of all devices, unless the configuration says otherwise: listings go
/// around in the names of a bucket, and a cache that is a little too small for that serves nothing.
const CACHE_DIVISOR: u64 = 8;
/// Of one device.
const CACHE_MIN: u64 = 32 << 20;
const CACHE_MAX: u64 = 4 << 30;

/// The index cache of each of so many devices, in bytes.
pub(crate) fn default_cache_bytes(devices: usize) -> u64 {
    cache_bytes(available_bytes(), devices)
}

fn cache_bytes(memory_bytes: Option<u64>, devices: usize) -> u64 {
    let devices = u64::try_from(devices.max(1)).unwrap_or(u64::MAX);
    (memory_bytes.unwrap_or_default() / CACHE_DIVISOR / devices).clamp(CACHE_MIN, CACHE_MAX)
}

/// The machine's memory, or what the control groups of this process leave it; `None` if the kernel does not say.
fn available_bytes() -> Option<u64> {
    let machine = machine_bytes(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        group_path(&text).map(|path| least_limit(Path::new("/sys/fs/cgroup"), path)).unwrap_or_default()
    });
    Some(group.map_or(machine, |limit| limit.min(machine)))
}

/// `MemTotal`, in KiB there.
fn machine_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The group of the unified hierarchy, without its first slash.
fn group_path(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// The least of the limits of a group and of those above it.
fn least_limit(root: &Path, group: &str) -> Option<u64> {
    let limit = |directory: &Path| fs::read_to_string(directory.join("memory.max")).ok()?.trim().parse().ok();
    root.join(group).ancestors().take_while(|above| above.starts_with(root)).filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_an_eighth_of_the_memory_within_limits() {
        assert_eq!(cache_bytes(Some(24 << 30), 6), 512 << 20);
        assert_eq!(cache_bytes(Some(1 << 30), 12), CACHE_MIN);
        assert_eq!(cache_bytes(None, 6), CACHE_MIN);
        assert_eq!(cache_bytes(Some(1 << 40), 2), CACHE_MAX);
        assert_eq!(cache_bytes(Some(8 << 30), 0), 1 << 30);
    }

    #[test]
    fn the_machine_and_its_groups_are_read() {
        assert_eq!(machine_bytes("MemTotal:       24576000 kB\nMemFree: 1 kB\n"), Some(24_576_000 << 10));
        assert_eq!(machine_bytes("MemFree: 1 kB\n"), None);
        assert_eq!(group_path("1:cpu:/a\n0::/system.slice/quarry\n"), Some("system.slice/quarry"));
        assert!(available_bytes().is_some_and(|bytes| bytes > 64 << 20));
    }

    #[test]
    fn the_narrowest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |directory: &str, limit: &str| {
            let directory = root.path().join(directory);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("memory.max"), limit).unwrap();
        };
        write("a/b", "max\n");
        assert_eq!(least_limit(root.path(), "a/b"), None);
        write("a", "1048576\n");
        write("a/b/c", "2097152\n");
        assert_eq!(least_limit(root.path(), "a/b/c"), Some(1 << 20));
        assert_eq!(least_limit(root.path(), "nothing/here"), None);
    }
}
