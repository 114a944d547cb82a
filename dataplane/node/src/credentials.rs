//! Root credentials: from the environment, else from `DIR/credentials`, else generated there once.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The root access key and its secret.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

/// Why there are no usable credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("set both QUARRY_ACCESS_KEY and QUARRY_SECRET_KEY, or neither")]
    HalfSet,
    #[error(
        "QUARRY_ACCESS_KEY must have 3 to 128 characters and QUARRY_SECRET_KEY 8 to 128, printable and without spaces"
    )]
    Malformed,
    #[error("cannot use {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{} does not hold the lines aws_access_key_id=... and aws_secret_access_key=...", path.display())]
    FileMalformed { path: PathBuf },
    #[error("{} may be read by others (mode {mode:o}); run: chmod 600 {}", path.display(), path.display())]
    FileTooOpen { path: PathBuf, mode: u32 },
}

/// Finds or makes the credentials. The file has the form of an AWS shared credentials file, so that
/// `AWS_SHARED_CREDENTIALS_FILE` can name it.
pub(crate) fn load(data: &Path) -> Result<Credentials, CredentialsError> {
    match (std::env::var("QUARRY_ACCESS_KEY").ok(), std::env::var("QUARRY_SECRET_KEY").ok()) {
        (Some(access_key), Some(secret_key)) => return checked(access_key, secret_key),
        (None, None) => {}
        _ => return Err(CredentialsError::HalfSet),
    }
    let path = data.join("credentials");
    let failed = |source| CredentialsError::File { path: path.clone(), source };
    if !path.exists() {
        generate(&path).map_err(failed)?;
    }
    let mode = fs::metadata(&path).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CredentialsError::FileTooOpen { path, mode });
    }
    let text = fs::read_to_string(&path).map_err(failed)?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        line.and_then(|rest| rest.trim_start().strip_prefix('=')).map(|value| value.trim().to_owned())
    };
    match (value("aws_access_key_id"), value("aws_secret_access_key")) {
        (Some(access_key), Some(secret_key)) => checked(access_key, secret_key),
        _ => Err(CredentialsError::FileMalformed { path }),
    }
}

fn checked(access_key: String, secret_key: String) -> Result<Credentials, CredentialsError> {
    let fits =
        |text: &str, least| (least..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !fits(&access_key, 3) || !fits(&secret_key, 8) || access_key.contains('/') {
        return Err(CredentialsError::Malformed);
    }
    Ok(Credentials { access_key, secret_key })
}

fn generate(path: &Path) -> std::io::Result<()> {
    let access_key = format!("QK{}", &hex::encode_upper(random::<9>()?));
    let secret_key = hex::encode(random::<20>()?);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    write!(file, "[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")?;
    file.sync_all()
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = load(dir.path()).unwrap();
        let again = load(dir.path()).unwrap();
        assert_eq!((first.access_key, &first.secret_key), (again.access_key, &again.secret_key));
        let path = dir.path().join("credentials");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(load(dir.path()), Err(CredentialsError::FileTooOpen { mode: 0o644, .. })));
    }
}
