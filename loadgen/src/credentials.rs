//! Where the access keys come from: flags, else the named file, else the environment.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::args::KeyArgs;
use crate::sigv4::Credentials;

pub(crate) fn find(args: &KeyArgs) -> Result<Credentials> {
    let found = if let (Some(access_key), Some(secret_key)) = (&args.access_key, &args.secret_key) {
        Credentials { access_key: access_key.clone(), secret_key: secret_key.clone(), session_token: None }
    } else if let Some(path) = &args.credentials {
        from_file(path, &args.profile)?
    } else {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
            (Some(access_key), Some(secret_key)) => {
                Credentials { access_key, secret_key, session_token: variable("AWS_SESSION_TOKEN") }
            }
            _ => bail!(
                "no credentials: give --access-key and --secret-key, --credentials FILE, or set \
                 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ),
        }
    };
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    if !plain(&found.access_key) || !found.session_token.as_deref().is_none_or(plain) {
        bail!("access key and session token must be printable characters without spaces");
    }
    Ok(found)
}

fn from_file(path: &Path, profile: &str) -> Result<Credentials> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the credentials file {}", path.display()))?;
    parse(&text, profile)
        .with_context(|| format!("no complete key pair in section [{profile}] of {}", path.display()))
}

fn parse(text: &str, profile: &str) -> Option<Credentials> {
    let mut section = None;
    let (mut access_key, mut secret_key, mut session_token) = (None, None, None);
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = Some(name.trim());
        } else if section == Some(profile)
            && let Some((name, value)) = line.split_once('=')
        {
            let value = Some(value.trim().to_owned());
            match name.trim() {
                "aws_access_key_id" => access_key = value,
                "aws_secret_access_key" => secret_key = value,
                "aws_session_token" => session_token = value,
                _ => {}
            }
        }
    }
    Some(Credentials { access_key: access_key?, secret_key: secret_key?, session_token })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sections_of_a_credentials_file() {
        let text = "# note\n[other]\naws_access_key_id = X\n\n[ default ]\naws_access_key_id=A\n\
                    aws_secret_access_key = s/+=\nregion = eu\n[half]\naws_access_key_id = H\n";
        let found = parse(text, "default").unwrap();
        assert_eq!((&*found.access_key, &*found.secret_key), ("A", "s/+="));
        assert_eq!(found.session_token, None);
        assert!(parse(text, "half").is_none());
        assert!(parse(text, "missing").is_none());
    }
}
