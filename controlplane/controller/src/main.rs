//! quarry-controller: one of any number of controllers of a cluster. See `quarry_controller::cluster`.

mod metered;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use quarry_clustermap::{ClusterId, ErasureProfile};
use quarry_controller::cluster::{
    ClusterController, EtcdConfig, Founding, LEASE_TTL_S, LeaderNumbers, LeaderOptions, PEER_LEASE_MS,
    PEER_LEASE_MS_RANGE, leases_fit,
};
use quarry_metastore::Etcd;
use quarry_meter::server::PageServer;
use serde::Deserialize;

use self::metered::{EtcdMeter, Metered};

/// Metadata partitions of a new cluster.
const PARTITIONS: u16 = 4_096;
/// Pause before etcd is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Decides placement and membership of a Quarry cluster. Start any number: one leads, the others stand by.
#[derive(Parser, Debug)]
#[command(name = "quarry-controller", version, about)]
struct Cli {
    /// Configuration file (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Validate the configuration and exit.
    #[arg(long)]
    check_config: bool,
}

/// The file.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigFile {
    /// Unique among the controllers; default: the host's name.
    name: Option<String>,
    /// Erasure profile of new blobs. Used when the cluster is founded, by its first leader.
    profile: Option<String>,
    /// Metadata partitions. Used when the cluster is founded.
    partitions: Option<u16>,
    /// Milliseconds that replicas keep their word to a primary. Used when the cluster is founded.
    peer_lease_ms: Option<u64>,
    /// Nodes that must have registered before the first map is made.
    initial_nodes: Option<usize>,
    /// Seconds a node's lease must be gone before its devices are out.
    node_grace_s: Option<u64>,
    /// Seconds a device is out before others take its places.
    rebuild_after_s: Option<u64>,
    /// Where metrics are shown at `/metrics`; default: nowhere.
    metrics_address: Option<SocketAddr>,
    /// `text` (default) or `json`.
    #[serde(default)]
    log_format: LogFormat,
    cluster: ClusterTable,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "kebab-case")]
enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ClusterTable {
    /// Name of the cluster: several can share an etcd.
    name: String,
    /// Seconds after which a silent controller is replaced.
    lease_ttl_s: Option<u64>,
    etcd: EtcdConfig,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let text = std::fs::read_to_string(&cli.config)
        .with_context(|| format!("cannot read {}", cli.config.display()))?;
    let file: ConfigFile =
        toml::from_str(&text).with_context(|| format!("{} is not valid", cli.config.display()))?;
    start_log(file.log_format);
    let etcd = file.cluster.etcd.load(&file.cluster.name)?;
    let options = options(&file)?;
    if cli.check_config {
        println!("the configuration is valid");
        return Ok(());
    }
    let (meter, numbers) = (Arc::new(EtcdMeter::default()), Arc::new(OnceLock::<Arc<LeaderNumbers>>::new()));
    let _page = start_page(&file, &meter, &numbers)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let run = async {
            let metastore = loop {
                match Box::pin(meter.connecting(Etcd::connect(&etcd))).await {
                    Ok(metastore) => break metastore,
                    Err(error) => tracing::warn!(event = "metastore_unreachable", %error),
                }
                tokio::time::sleep(RETRY).await;
            };
            let run = u64::from_le_bytes(random()?);
            let metastore = Metered { inner: metastore, meter };
            let controller = ClusterController::new(Arc::new(metastore), options, run);
            numbers.get_or_init(|| controller.numbers());
            Box::pin(controller.run()).await;
            anyhow::Ok(())
        };
        tokio::select! {
            result = run => result,
            result = stopped() => result,
        }
    })
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("QUARRY_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Shows metrics, also while etcd does not answer.
fn start_page(
    file: &ConfigFile,
    meter: &Arc<EtcdMeter>,
    numbers: &Arc<OnceLock<Arc<LeaderNumbers>>>,
) -> anyhow::Result<Option<PageServer>> {
    let Some(address) = file.metrics_address else { return Ok(None) };
    let (meter, numbers) = (Arc::clone(meter), Arc::clone(numbers));
    let page = move || metered::page(&meter, numbers.get().map(|numbers| &**numbers));
    let server = PageServer::start(address, page);
    server.map(Some).with_context(|| format!("cannot show metrics at {address}"))
}

fn options(file: &ConfigFile) -> anyhow::Result<LeaderOptions> {
    let profile: ErasureProfile = file.profile.as_deref().unwrap_or("4+2").parse()?;
    let partitions = file.partitions.unwrap_or(PARTITIONS);
    anyhow::ensure!(partitions > 0, "partitions must be at least 1");
    let seconds = |given: Option<u64>, default| Duration::from_secs(given.unwrap_or(default));
    let lease_ttl = seconds(file.cluster.lease_ttl_s, LEASE_TTL_S);
    anyhow::ensure!(lease_ttl >= Duration::from_secs(2), "cluster.lease-ttl-s must be at least 2");
    let peer_lease_ms = file.peer_lease_ms.unwrap_or(PEER_LEASE_MS);
    anyhow::ensure!(
        leases_fit(peer_lease_ms, lease_ttl),
        "peer-lease-ms is {peer_lease_ms}: it must be in {PEER_LEASE_MS_RANGE:?}, and at most half of cluster.lease-ttl-s"
    );
    let name = match &file.name {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").context("name is required")?,
    };
    Ok(LeaderOptions {
        name: name.trim().to_owned(),
        lease_ttl,
        node_grace: seconds(file.node_grace_s, 2),
        founding: Founding { peer_lease_ms, ..Founding::new(ClusterId(random()?), partitions, profile) },
        initial_nodes: file.initial_nodes.unwrap_or(3),
        rebuild_after_ms: file.rebuild_after_s.map_or(quarry_planner::REBUILD_AFTER_MS, |s| s * 1000),
        clock_ms: unix_ms,
    })
}

/// Wall clock; a time before 1970 counts as 1970.
#[expect(clippy::disallowed_methods, reason = "the clock that everything else is given starts here")]
fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}

/// The lease is left to end by itself after a signal that cannot be caught; after these it is not worth a wait either:
/// the next leader is there within the lease's time.
async fn stopped() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!(event = "stopping");
    Ok(())
}
