//! Block devices of the host, and whether one could become a device of Quarry: what `quarryctl device list --available`
//! asks. Nothing is opened for writing or locked. When in doubt a device is not available.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use quarry_storage::device::{DeviceFile, Found};
use serde_json::{Value, json};

/// Kinds that hold no data of their own, or none that lasts.
const VIRTUAL: [&str; 5] = ["ram", "zram", "sr", "fd", "nbd"];

/// Where the kernel tells; other places in tests.
pub(super) struct Host<'h> {
    pub(super) sys: &'h Path,
    pub(super) proc: &'h Path,
    pub(super) dev: &'h Path,
}

impl Host<'static> {
    /// This machine.
    pub(super) fn real() -> Self {
        Self { sys: Path::new("/sys"), proc: Path::new("/proc"), dev: Path::new("/dev") }
    }
}

/// Text of a small file, trimmed; empty if there is none.
pub(super) fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// All of them but those of kinds that nobody would use. `ours`: paths that this node uses.
pub(super) fn list(host: &Host<'_>, ours: &[PathBuf]) -> Value {
    let used = ours.iter().map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect();
    let wanted = |name: &String| {
        let size: u64 = text(&host.sys.join("block").join(name).join("size")).parse().unwrap_or(0);
        size > 0 && !VIRTUAL.iter().any(|kind| name.starts_with(kind))
    };
    let all = names(&host.sys.join("block"));
    all.iter().filter(|name| wanted(name)).map(|name| one(host, name, &used)).collect()
}

fn one(host: &Host<'_>, name: &str, used: &BTreeSet<PathBuf>) -> Value {
    let sys = host.sys.join("block").join(name);
    // The kernel writes "!" for a "/" of the name.
    let path = host.dev.join(name.replace('!', "/"));
    let sectors: u64 = text(&sys.join("size")).parse().unwrap_or(0);
    let reasons = reasons(host, name, &path, used);
    json!({
        "path": path, "size_bytes": sectors * 512, "model": text(&sys.join("device/model")),
        "rotational": text(&sys.join("queue/rotational")) == "1",
        "scheduler": scheduler(&text(&sys.join("queue/scheduler"))),
        "available": reasons.is_empty(), "why_not": reasons,
    })
}

/// The one in brackets.
pub(super) fn scheduler(text: &str) -> &str {
    let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    chosen.unwrap_or(text)
}

fn reasons(host: &Host<'_>, name: &str, path: &Path, used: &BTreeSet<PathBuf>) -> Vec<String> {
    let sys = host.sys.join("block").join(name);
    let mut reasons = Vec::new();
    if used.contains(path) {
        return vec!["this node uses it".to_owned()];
    }
    if text(&sys.join("ro")) == "1" {
        reasons.push("it is read-only".to_owned());
    }
    let parts: Vec<String> =
        names(&sys).into_iter().filter(|part| sys.join(part).join("partition").exists()).collect();
    if !parts.is_empty() {
        reasons.push(format!("it has partitions: {}", parts.join(", ")));
    }
    let of_parts = parts.iter().map(|part| sys.join(part).join("holders"));
    let holders: Vec<String> =
        std::iter::once(sys.join("holders")).chain(of_parts).flat_map(|path| names(&path)).collect();
    if !holders.is_empty() {
        reasons.push(format!("it is part of {}", holders.join(", ")));
    }
    let mounts = fs::read_to_string(host.proc.join("self/mountinfo")).unwrap_or_default();
    let number = text(&sys.join("dev"));
    if let Some(point) = mounts.lines().find_map(|line| mount_of(line, &number)) {
        reasons.push(format!("it is mounted at {point}"));
    }
    let swaps = fs::read_to_string(host.proc.join("swaps")).unwrap_or_default();
    if swaps.lines().any(|line| line.split_whitespace().next().is_some_and(|first| Path::new(first) == path))
    {
        reasons.push("it is swap space".to_owned());
    }
    match DeviceFile::probe(path) {
        Ok(Found::Blank) => {}
        Ok(Found::Quarry) => reasons.push("it belongs to a Quarry cluster".to_owned()),
        Ok(found) => reasons.push(format!("it holds {found}")),
        Err(error) => reasons.push(format!("it cannot be looked at: {error}")),
    }
    reasons
}

/// The mount point of a line of `mountinfo`, if it is of the device with this number.
fn mount_of<'l>(line: &'l str, number: &str) -> Option<&'l str> {
    let mut words = line.split_whitespace().skip(2);
    let (device, _, point) = (words.next()?, words.next()?, words.next()?);
    (device == number && !number.is_empty()).then_some(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// A made-up disk with these files under `/sys/block/NAME`.
    fn disk(root: &Path, name: &str, content: &[u8], files: &[(&str, &str)]) {
        let sys = root.join("sys/block").join(name);
        for (file, text) in [("size", "2048"), ("ro", "0"), ("dev", name)].iter().chain(files) {
            let path = sys.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::create_dir_all(root.join("dev")).unwrap();
        fs::write(root.join("dev").join(name), content).unwrap();
    }

    #[test]
    fn only_what_is_blank_and_unused_is_available() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let blank = vec![0; MIB];
        let mut quarry = blank.clone();
        quarry[..8].copy_from_slice(b"QUARRYSB");
        let mut ext = blank.clone();
        ext[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        let mut other = blank.clone();
        other[100] = 1;
        disk(root, "a-free", &blank, &[("queue/rotational", "1"), ("queue/scheduler", "none [mq-deadline]")]);
        disk(root, "b-ours", &blank, &[]);
        disk(root, "c-quarry", &quarry, &[]);
        disk(root, "d-ext", &ext, &[]);
        disk(root, "e-part", &blank, &[("e-part1/partition", "1")]);
        disk(root, "f-held", &blank, &[("holders/dm-0/x", "")]);
        disk(root, "g-mount", &blank, &[]);
        disk(root, "h-read", &blank, &[("ro", "1")]);
        disk(root, "i-swap", &blank, &[]);
        disk(root, "j-some", &other, &[]);
        disk(root, "k-none", &blank, &[("size", "0")]);
        disk(root, "ram0", &blank, &[]);
        fs::create_dir_all(root.join("proc/self")).unwrap();
        fs::write(root.join("proc/self/mountinfo"), "36 35 g-mount / /mnt rw - ext4 x rw\n").unwrap();
        let swap = format!("Filename Type\n{} partition\n", root.join("dev/i-swap").display());
        fs::write(root.join("proc/swaps"), swap).unwrap();
        let (sys, proc, dev) = (&*root.join("sys"), &*root.join("proc"), &*root.join("dev"));
        let listed = list(&Host { sys, proc, dev }, &[root.join("dev/b-ours")]);
        let listed = listed.as_array().unwrap();
        assert_eq!(listed.len(), 10, "{listed:?}");
        let why = |index: usize| listed[index]["why_not"][0].as_str().unwrap_or_default();
        assert_eq!((listed[0]["available"].as_bool(), &listed[0]["size_bytes"]), (Some(true), &json!(MIB)));
        assert_eq!(
            (&listed[0]["rotational"], &listed[0]["scheduler"]),
            (&json!(true), &json!("mq-deadline"))
        );
        for (index, said) in [
            (1, "node uses"),
            (2, "Quarry"),
            (4, "e-part1"),
            (5, "dm-0"),
            (6, "/mnt"),
            (7, "read-only"),
            (8, "swap"),
        ] {
            assert!(why(index).contains(said), "{index}: {}", why(index));
        }
        assert!(listed[1..].iter().all(|disk| disk["available"] == false), "{listed:?}");
    }
}
