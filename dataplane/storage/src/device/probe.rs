//! Recognising what is on a device before it is formatted, so that nothing valuable is overwritten by mistake.
//!
//! Signatures are looked for in the first and the last MiB; anything there that is not zero and not recognised is
//! unknown data. A device whose only data lies between the two counts as blank.

use std::fmt;

/// What is read at either end.
pub(super) const PROBE_BYTES: u64 = 1 << 20;

/// First bytes of a Quarry device.
pub(super) const QUARRY_MAGIC: &[u8; 8] = b"QUARRYSB";

/// What stands on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Only zeros where anything would stand.
    Blank,
    /// A Quarry superblock.
    Quarry,
    /// An ext2, ext3 or ext4 file system.
    Ext,
    /// An XFS file system.
    Xfs,
    /// A btrfs file system.
    Btrfs,
    /// A GUID partition table.
    Gpt,
    /// An MBR partition table, or a FAT or NTFS boot sector.
    Mbr,
    /// A swap area.
    Swap,
    /// An LVM physical volume.
    Lvm,
    /// Something else.
    Unknown,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blank => "nothing",
            Self::Quarry => "a Quarry device",
            Self::Ext => "an ext2/3/4 file system",
            Self::Xfs => "an XFS file system",
            Self::Btrfs => "a btrfs file system",
            Self::Gpt => "a GPT partition table",
            Self::Mbr => "an MBR partition table or boot sector",
            Self::Swap => "a swap area",
            Self::Lvm => "an LVM physical volume",
            Self::Unknown => "unknown data",
        })
    }
}

/// A signature at a fixed offset from the start.
struct Signature {
    offset: usize,
    bytes: &'static [u8],
    found: Found,
}

const fn signature(offset: usize, bytes: &'static [u8], found: Found) -> Signature {
    Signature { offset, bytes, found }
}

/// In order of trust: a file system may leave the boot sector of an older owner alone, so MBR comes last.
const SIGNATURES: [Signature; 14] = [
    signature(0, QUARRY_MAGIC, Found::Quarry),
    signature(0, b"XFSB", Found::Xfs),
    signature(0x1_0040, b"_BHRfS_M", Found::Btrfs),
    signature(0x438, &[0x53, 0xEF], Found::Ext),
    signature(512, b"EFI PART", Found::Gpt),
    signature(4096, b"EFI PART", Found::Gpt),
    signature(0, b"LABELONE", Found::Lvm),
    signature(512, b"LABELONE", Found::Lvm),
    signature(1024, b"LABELONE", Found::Lvm),
    signature(1536, b"LABELONE", Found::Lvm),
    signature(4086, b"SWAPSPACE2", Found::Swap),
    signature(4086, b"SWAP-SPACE", Found::Swap),
    signature(65526, b"SWAPSPACE2", Found::Swap),
    signature(510, &[0x55, 0xAA], Found::Mbr),
];

/// Classifies a device by its first and last bytes, at most [`PROBE_BYTES`] each.
pub(super) fn identify(head: &[u8], tail: &[u8]) -> Found {
    let at_head = SIGNATURES
        .iter()
        .find(|signature| head.get(signature.offset..).is_some_and(|rest| rest.starts_with(signature.bytes)));
    if let Some(signature) = at_head {
        return signature.found;
    }
    // The backup of a partition table whose first copy was wiped.
    let backup_gpt = [512, 4096]
        .iter()
        .any(|&from_end| tail.len() >= from_end && tail[tail.len() - from_end..].starts_with(b"EFI PART"));
    if backup_gpt {
        return Found::Gpt;
    }
    if head.iter().chain(tail).all(|&byte| byte == 0) { Found::Blank } else { Found::Unknown }
}

#[cfg(test)]
mod tests;
