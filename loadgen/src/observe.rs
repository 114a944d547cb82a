//! What the server used meanwhile: its CPU time from /proc or from its metrics, its flushes and profile from Quarry's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::args::run::ObserveArgs;
use crate::process::{self, FoundBy};

/// Longest answer of a metrics page.
const PAGE_BYTES_MAX: usize = 32 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);

/// What was seen of the server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    pub(crate) pids: Vec<u32>,
    pub(crate) names: Vec<String>,
    pub(crate) found_by: Option<FoundBy>,
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) peak_rss_bytes: Option<u64>,
    /// Device flushes by Quarry's metrics.
    pub(crate) flushes: Option<f64>,
    /// Erasure profile k+m by Quarry's cluster map.
    pub(crate) profile: Option<String>,
}

/// Looks at the server before and after.
pub(crate) struct Observer {
    pids: Vec<u32>,
    found_by: FoundBy,
    metrics: Option<Page>,
    before: (Option<process::Usage>, Option<BTreeMap<String, f64>>),
}

/// An address and the path of a page there.
struct Page {
    authority: String,
    path: String,
}

impl Observer {
    pub(crate) async fn new(args: &ObserveArgs, server: SocketAddr) -> Result<Self> {
        let (pids, found_by) = match args.server_pid.is_empty() {
            true => (process::listeners(server.ip(), server.port()), FoundBy::ListeningPort),
            false => (args.server_pid.clone(), FoundBy::ServerPidFlag),
        };
        let metrics = args.metrics_url.as_deref().map(Page::parse).transpose()?;
        if let Some(page) = &metrics {
            page.sums().await.with_context(|| format!("cannot read metrics of {}", page.authority))?;
        }
        Ok(Self { pids, found_by, metrics, before: (None, None) })
    }

    async fn look(&self) -> (Option<process::Usage>, Option<BTreeMap<String, f64>>) {
        let usage = if self.pids.is_empty() { None } else { process::usage(&self.pids) };
        let sums = match &self.metrics {
            Some(page) => page.sums().await.ok(),
            None => None,
        };
        (usage, sums)
    }

    pub(crate) async fn begin(&mut self) {
        self.before = self.look().await;
    }

    pub(crate) async fn end(&self) -> Observed {
        let (usage, sums) = self.look().await;
        let (usage_before, sums_before) = &self.before;
        let grown = |name: &str| Some(sums.as_ref()?.get(name)? - sums_before.as_ref()?.get(name)?);
        let by_process =
            usage.zip(*usage_before).map(|(after, before)| after.cpu_seconds - before.cpu_seconds);
        let by_metrics = grown("process_cpu_seconds_total");
        let profile = match &self.metrics {
            Some(page) => page.profile().await,
            None => None,
        };
        let found_by = match (by_process, by_metrics) {
            (Some(_), _) => Some(self.found_by),
            (None, Some(_)) => Some(FoundBy::Metrics),
            _ => None,
        };
        Observed {
            names: process::names(&self.pids),
            pids: self.pids.clone(),
            found_by,
            cpu_seconds: by_process.or(by_metrics),
            peak_rss_bytes: usage.map(|usage| usage.peak_rss_bytes),
            flushes: grown("quarry_device_journal_flushes_total"),
            profile,
        }
    }
}

impl Page {
    fn parse(url: &str) -> Result<Self> {
        let Some(rest) = url.strip_prefix("http://") else { bail!("--metrics-url must begin with http://") };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, "metrics"));
        if authority.is_empty() || !rest.chars().all(|c| c.is_ascii_graphic()) {
            bail!("--metrics-url must look like http://HOST:PORT/metrics");
        }
        Ok(Self { authority: authority.to_owned(), path: format!("/{path}") })
    }

    async fn read(&self, path: &str) -> Result<String> {
        let read = async {
            let has_port = self.authority.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok());
            let address = if has_port { self.authority.clone() } else { format!("{}:80", self.authority) };
            let stream = TcpStream::connect(address).await?;
            let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
            let driver = tokio::spawn(connection);
            let request = Request::get(path).header("host", &self.authority).body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            if !response.status().is_success() {
                bail!("HTTP {}", response.status());
            }
            let body = Limited::new(response.into_body(), PAGE_BYTES_MAX).collect().await;
            driver.abort();
            let bytes = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        tokio::time::timeout(TIMEOUT, read).await.context("no answer in time")?
    }

    async fn sums(&self) -> Result<BTreeMap<String, f64>> {
        Ok(sums(&self.read(&self.path).await?))
    }

    /// The erasure profile, if the server is Quarry: from the cluster map beside its metrics.
    async fn profile(&self) -> Option<String> {
        let map: serde_json::Value = serde_json::from_str(&self.read("/map").await.ok()?).ok()?;
        find_profile(&map)
    }
}

/// Sums of metrics over their labels.
fn sums(page: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let name = series.split('{').next().unwrap_or(series);
        *sums.entry(name.to_owned()).or_insert(0.0) += value;
    }
    sums
}

/// Every distinct profile of the map, written k+m.
fn find_profile(map: &serde_json::Value) -> Option<String> {
    let mut found = std::collections::BTreeSet::new();
    collect_profiles(map, &mut found);
    (!found.is_empty()).then(|| found.into_iter().collect::<Vec<_>>().join(", "))
}

fn collect_profiles(value: &serde_json::Value, found: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let part = |name: &str| value.get(name).and_then(serde_json::Value::as_u64);
                let named = name == "profile" || name.ends_with("_profile");
                match (named, value.as_str()) {
                    (true, Some(text)) => drop(found.insert(text.to_owned())),
                    (true, None) => {
                        if let Some((data, parity)) = part("data_shards").zip(part("parity_shards")) {
                            found.insert(format!("{data}+{parity}"));
                        }
                    }
                    _ => collect_profiles(value, found),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect_profiles(value, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{Page, find_profile, sums};

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let page = "# HELP x y\nprocess_cpu_seconds_total 12.5\n\
                    quarry_device_journal_flushes_total{device=\"a\"} 3\n\
                    quarry_device_journal_flushes_total{device=\"b\"} 4\nbad\n";
        let sums = sums(page);
        assert_eq!(sums["process_cpu_seconds_total"], 12.5);
        assert_eq!(sums["quarry_device_journal_flushes_total"], 7.0);
    }

    #[test]
    fn pages_and_profiles_are_recognised() {
        let page = Page::parse("http://h:9001/metrics").unwrap();
        assert_eq!((&*page.authority, &*page.path), ("h:9001", "/metrics"));
        assert!(Page::parse("https://h/metrics").is_err() && Page::parse("http:///x").is_err());
        let map = serde_json::json!({"hot_profile": {"data_shards": 4, "parity_shards": 2}, "x": [{"profile": "1+1"}]});
        assert_eq!(find_profile(&map).unwrap(), "1+1, 4+2");
        assert_eq!(find_profile(&serde_json::json!({"a": 1})), None);
    }
}
