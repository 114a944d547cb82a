//! A client of the admin address: HTTP/1.1 without TLS, one connection per request.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;

const CONNECT_FOR: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of an answer: a list of ten thousand users has a few million.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

pub(crate) struct Client {
    address: String,
    token: Option<String>,
}

impl Client {
    /// `admin` is `http://HOST:PORT`.
    pub(crate) fn new(admin: &str, token_file: Option<&Path>) -> anyhow::Result<Self> {
        let address = admin.strip_prefix("http://").unwrap_or(admin).trim_end_matches('/').to_owned();
        if address.contains('/') {
            bail!("the admin address is http://HOST:PORT, not {admin}");
        }
        let token = match token_file {
            Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?),
            None => std::env::var("QUARRY_ADMIN_TOKEN").ok(),
        };
        let token = token.map(|token| token.trim().to_owned());
        if token.as_ref().is_some_and(|token| token.bytes().any(|byte| !byte.is_ascii_graphic())) {
            bail!("the admin token has characters that no token has");
        }
        Ok(Self { address, token })
    }

    /// The path of a thing by its names.
    pub(crate) fn path(&self, names: &[&str]) -> anyhow::Result<String> {
        let bad = |name: &&&str| {
            name.is_empty() || name.bytes().any(|b| !b.is_ascii_graphic() || b"/?#%".contains(&b))
        };
        if let Some(name) = names.iter().find(bad) {
            bail!("{name:?} is not a name");
        }
        Ok(format!("/admin/{}", names.join("/")))
    }

    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send("GET", path, None)
    }

    /// The answer's JSON; an error that the node tells becomes ours.
    pub(crate) fn send(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<Value> {
        let (status, text) =
            self.exchange(method, path, body).with_context(|| format!("asking {}", self.address))?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if (200..300).contains(&status) {
            return Ok(value);
        }
        match value["error"].as_str() {
            Some(problem) if status == 401 && self.token.is_none() => {
                bail!("{problem}; give --token-file DATA/admin-token or set QUARRY_ADMIN_TOKEN")
            }
            Some(problem) => bail!("{problem}"),
            None => bail!("the node answered {status}: {}", text.trim()),
        }
    }

    fn exchange(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<(u16, String)> {
        let address = self.address.to_socket_addrs()?.next().context("the name has no address")?;
        let mut stream = TcpStream::connect_timeout(&address, CONNECT_FOR)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let authorization =
            self.token.as_ref().map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let body = body.unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{authorization}content-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        let answer = String::from_utf8(answer).context("the answer is not text")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer is incomplete")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.context("the answer is not HTTP")?, body.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::Client;

    #[test]
    fn names_do_not_leave_their_place_in_a_path() {
        let client = Client { address: "x".into(), token: None };
        assert_eq!(client.path(&["users", "a@b+c"]).unwrap(), "/admin/users/a@b+c");
        for name in ["", "a/b", "a?b", "a b", "a\r\n", "é", "%2e"] {
            assert!(client.path(&["users", name]).is_err(), "{name}");
        }
    }
}
