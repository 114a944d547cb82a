//! The key that all nodes of a cluster share.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Bytes of the key.
const KEY_BYTES: usize = 32;

/// A shared secret of 32 bytes.
#[derive(Clone)]
pub(crate) struct ClusterKey([u8; KEY_BYTES]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("cannot read the cluster key {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("others may read the cluster key {} (mode {mode:o}); it must have mode 0600", path.display())]
    Readable { path: PathBuf, mode: u32 },
    #[error("the cluster key {} is not 64 hexadecimal digits; make one with: openssl rand -hex 32", path.display())]
    Malformed { path: PathBuf },
}

impl ClusterKey {
    pub(crate) fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads 64 hexadecimal digits from a file that nobody but its owner may use.
    pub(crate) fn read(path: &Path) -> Result<Self, KeyError> {
        let unreadable = |source| KeyError::Unreadable { path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Readable { path: path.to_owned(), mode });
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let mut bytes = [0; KEY_BYTES];
        hex::decode_to_slice(text.trim(), &mut bytes)
            .map_err(|_| KeyError::Malformed { path: path.to_owned() })?;
        Ok(Self::new(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_if_private_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            ClusterKey::read(&path)
        };
        assert_eq!(write(&format!("{}\n", "ab".repeat(32)), 0o600).unwrap().bytes(), [0xab; 32]);
        assert!(matches!(write(&"ab".repeat(32), 0o640), Err(KeyError::Readable { mode: 0o640, .. })));
        assert!(matches!(write("ab", 0o600), Err(KeyError::Malformed { .. })));
        assert!(matches!(write(&"zz".repeat(32), 0o600), Err(KeyError::Malformed { .. })));
    }
}
