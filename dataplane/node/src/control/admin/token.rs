//! The admin token: from QUARRY_ADMIN_TOKEN, else from `DIR/admin-token`, else generated there once.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Characters of a token that is given.
const TOKEN_CHARS_MIN: usize = 16;

/// What a request to change something must bring.
pub(crate) struct AdminToken(String);

/// Why there is no usable token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("an admin token has at least {TOKEN_CHARS_MIN} visible ASCII characters")]
    Malformed,
    #[error("cannot use {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{} may be read by others (mode {mode:o}); run: chmod 600 {}", path.display(), path.display())]
    TooOpen { path: PathBuf, mode: u32 },
}

impl AdminToken {
    /// Finds or makes the token.
    pub(crate) fn load(data: &Path) -> Result<Self, TokenError> {
        if let Ok(token) = std::env::var("QUARRY_ADMIN_TOKEN") {
            return Self::checked(token);
        }
        let path = data.join("admin-token");
        let failed = |source| TokenError::File { path: path.clone(), source };
        if !path.exists() {
            let token = hex::encode(crate::credentials::random::<24>().map_err(failed)?);
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
            writeln!(file, "{token}").and_then(|()| file.sync_all()).map_err(failed)?;
        }
        let mode = fs::metadata(&path).map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::TooOpen { path, mode });
        }
        Self::checked(fs::read_to_string(&path).map_err(failed)?.trim().to_owned())
    }

    fn checked(token: String) -> Result<Self, TokenError> {
        let fits = token.len() >= TOKEN_CHARS_MIN && token.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(Self(token)) } else { Err(TokenError::Malformed) }
    }

    /// Whether the value of an `Authorization` header brings the token. The time it takes
    /// does not depend on how much of a guess is right.
    pub(crate) fn is_brought_by(&self, authorization: Option<&[u8]>) -> bool {
        let Some(given) = authorization.and_then(|value| value.strip_prefix(b"Bearer ")) else {
            return false;
        };
        // Every byte is looked at, whatever the first ones are.
        let mine = self.0.as_bytes();
        let differs = mine.iter().enumerate().fold(mine.len() ^ given.len(), |differs, (at, byte)| {
            differs | usize::from(byte ^ given.get(at).copied().unwrap_or(0))
        });
        std::hint::black_box(differs) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_once_private_and_compared_whole() {
        let dir = tempfile::tempdir().unwrap();
        let first = AdminToken::load(dir.path()).unwrap();
        let again = AdminToken::load(dir.path()).unwrap();
        assert_eq!(first.0, again.0);
        let brought = |text: &str| first.is_brought_by(Some(text.as_bytes()));
        assert!(brought(&format!("Bearer {}", first.0)));
        assert!(!first.is_brought_by(None));
        for wrong in [
            first.0.clone(),
            "Bearer ".into(),
            format!("Bearer {}x", first.0),
            format!("Bearer {}", &first.0[1..]),
            format!("Bearer {}", &first.0[..first.0.len() - 1]),
        ] {
            assert!(!brought(&wrong), "{wrong}");
        }
        let path = dir.path().join("admin-token");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(AdminToken::load(dir.path()), Err(TokenError::TooOpen { mode: 0o640, .. })));
    }
}
