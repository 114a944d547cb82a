//! How to reach etcd: the table `[cluster.etcd]` of every program of a cluster.

use std::{fs, path::PathBuf, time::Duration};

use quarry_metastore::{EtcdOptions, EtcdTls, EtcdUser};
use serde::Deserialize;

/// Longest wait for one call: several fit into the time of a lease.
const DEADLINE: Duration = Duration::from_secs(2);

/// Where etcd is, and how to log in.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EtcdConfig {
    /// Client URLs of all members, for example `https://10.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// Certificate of the authority that signed etcd's, PEM; required for `https`.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, PEM, if etcd asks for one.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// User name, if etcd has authentication on.
    #[serde(default)]
    pub user: Option<String>,
    /// File that holds the user's password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// Why a table was refused.
#[derive(Debug, thiserror::Error)]
pub enum ClusterOptionsError {
    /// No endpoints.
    #[error("cluster.etcd.endpoints lists no etcd")]
    NoEndpoints,
    /// An endpoint that is neither http nor https, or a mix of both.
    #[error("etcd endpoint {endpoint:?} must begin with {expected}")]
    Scheme {
        /// The endpoint.
        endpoint: String,
        /// What the other settings ask for.
        expected: &'static str,
    },
    /// One of two settings that belong together.
    #[error("{given} needs {missing}")]
    Half {
        /// The setting given.
        given: &'static str,
        /// The one that is missing.
        missing: &'static str,
    },
    /// A cluster name that cannot stand in a key.
    #[error("a cluster name has 1 to 63 of the characters a-z, 0-9 and '-', not {name:?}")]
    Name {
        /// The name.
        name: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl EtcdConfig {
    /// Checks the settings and reads the files; `cluster` is the cluster's name, part of every key.
    ///
    /// # Errors
    /// [`ClusterOptionsError`].
    pub fn load(&self, cluster: &str) -> Result<EtcdOptions, ClusterOptionsError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=63).contains(&cluster.len()) || !cluster.chars().all(plain) {
            return Err(ClusterOptionsError::Name { name: cluster.to_owned() });
        }
        if self.endpoints.is_empty() {
            return Err(ClusterOptionsError::NoEndpoints);
        }
        let expected = if self.ca_file.is_some() { "https://" } else { "http://" };
        if let Some(endpoint) = self.endpoints.iter().find(|endpoint| !endpoint.starts_with(expected)) {
            return Err(ClusterOptionsError::Scheme { endpoint: endpoint.clone(), expected });
        }
        let read = |path: &PathBuf| {
            fs::read(path).map_err(|source| ClusterOptionsError::Unreadable { path: path.clone(), source })
        };
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (None, None) => None,
            (Some(_), None) => return Err(half("cert-file", "key-file")),
            (None, Some(_)) => return Err(half("key-file", "cert-file")),
        };
        let tls = match &self.ca_file {
            Some(path) => Some(EtcdTls { authority: read(path)?, identity }),
            None if identity.is_some() => return Err(half("cert-file", "ca-file")),
            None => None,
        };
        let user = match (&self.user, &self.password_file) {
            (Some(name), Some(path)) => {
                let password = String::from_utf8_lossy(&read(path)?).trim_end().to_owned();
                Some(EtcdUser { name: name.clone(), password })
            }
            (None, None) => None,
            (Some(_), None) => return Err(half("user", "password-file")),
            (None, Some(_)) => return Err(half("password-file", "user")),
        };
        let prefix = format!("quarry/{cluster}/");
        Ok(EtcdOptions { endpoints: self.endpoints.clone(), prefix, deadline: DEADLINE, tls, user })
    }
}

fn half(given: &'static str, missing: &'static str) -> ClusterOptionsError {
    ClusterOptionsError::Half { given, missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_belong_together() {
        let config = |text: &str| toml::from_str::<EtcdConfig>(text).unwrap().load("lake");
        let plain = config("endpoints = ['http://a:1', 'http://b:1']").unwrap();
        assert_eq!((plain.prefix.as_str(), plain.tls, plain.user), ("quarry/lake/", None, None));
        let refused = |text: &str| config(text).unwrap_err().to_string();
        assert_eq!(refused("endpoints = []"), "cluster.etcd.endpoints lists no etcd");
        let scheme = refused("endpoints = ['https://a:1']");
        assert_eq!(scheme, "etcd endpoint \"https://a:1\" must begin with http://");
        assert_eq!(refused("endpoints = ['http://a']\nuser = 'q'"), "user needs password-file");
        assert_eq!(refused("endpoints = ['http://a']\nkey-file = 'q'"), "key-file needs cert-file");
        assert!(toml::from_str::<EtcdConfig>("endpoints = []\npassword = 'x'").is_err());
        assert!(toml::from_str::<EtcdConfig>("endpoints = ['http://a']").unwrap().load("A/b").is_err());
    }
}
