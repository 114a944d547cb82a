//! Configuration: flags over file over defaults, validated whole before any device is opened.

mod memory;
mod size;

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use quarry_clustermap::{ErasureProfile, Tier};
use quarry_controller::cluster::EtcdConfig;
use quarry_gateway::{Domains, ObjectOwnership};
use serde::Deserialize;

pub(crate) use self::size::Bytes;
use crate::{audit::AuditConfig, runtime::tls::TlsFiles};

/// An S3-compatible object store.
#[derive(Parser, Debug)]
#[command(
    name = "quarryd",
    version,
    about,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Decode every area of a device, read-only; goes on past damage.
    Inspect {
        /// A device or device file that no node has open.
        device: PathBuf,
        /// Machine-readable output.
        #[arg(long)]
        json: bool,
    },
    /// Check owners, shards, extents and free maps of stopped nodes against each other, in both directions.
    Fsck {
        /// The node's data directory; of a cluster, repeat for each node. What others hold is told as unread.
        #[arg(long, required = true)]
        data: Vec<PathBuf>,
        /// A device that is not where its node had it; repeat for each.
        #[arg(long = "device", value_name = "PATH")]
        devices: Vec<PathBuf>,
        /// Also read every shard and verify its checksums.
        #[arg(long)]
        verify_data: bool,
        /// Machine-readable output.
        #[arg(long)]
        json: bool,
    },
}

/// Flags of the server. What is absent comes from the file, then from the defaults.
#[derive(Args, Debug, Default)]
pub(crate) struct RunArgs {
    /// Run one node with the embedded control plane: no etcd needed.
    #[arg(long)]
    pub(crate) standalone: bool,
    /// Directory for credentials, the embedded metastore and device files.
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// A raw block device or a file; repeat for each. Default: six files in the data directory.
    #[arg(long = "device")]
    pub(crate) devices: Vec<PathBuf>,
    /// As --device, of the cold tier: for data of the classes STANDARD_IA, ONEZONE_IA and GLACIER_IR.
    #[arg(long = "cold-device", value_name = "PATH")]
    pub(crate) cold_devices: Vec<PathBuf>,
    /// Size of device files that are created, for example 4GiB.
    #[arg(long)]
    pub(crate) device_size: Option<Bytes>,
    /// Erasure profile k+m of new blobs, for example 4+2.
    #[arg(long)]
    pub(crate) profile: Option<ErasureProfile>,
    /// Erasure profile k+m of new blobs of the cold tier. Default: that of the others.
    #[arg(long)]
    pub(crate) cold_profile: Option<ErasureProfile>,
    /// Address of the S3 endpoint.
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// Certificate chain of the S3 endpoint (PEM); with --tls-key it speaks HTTPS. A renewed one is taken in seconds.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Address of metrics and health checks.
    #[arg(long)]
    pub(crate) admin: Option<SocketAddr>,
    /// Address at which other nodes of the cluster reach this one.
    #[arg(long)]
    pub(crate) peer_listen: Option<SocketAddr>,
    /// File with the key that the nodes of the cluster share: 64 hexadecimal digits, mode 0600.
    #[arg(long)]
    pub(crate) cluster_key_file: Option<PathBuf>,
    /// Executor threads, one pinned to each core. Default: all cores.
    #[arg(long)]
    pub(crate) cores: Option<usize>,
    /// Configuration file (TOML).
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Validate the configuration and exit.
    #[arg(long)]
    pub(crate) check_config: bool,
    /// Format devices that hold something else. What they hold is lost.
    #[arg(long)]
    pub(crate) format_devices_losing_their_data: bool,
    /// A listed device whose place a new one takes: it is lost, and what is at PATH now is formatted. Repeat for each.
    #[arg(long = "replace-device", value_name = "PATH")]
    pub(crate) replace_devices: Vec<PathBuf>,
    /// BUCKET.DOMAIN is the bucket too (virtual-host style). May be repeated.
    #[arg(long = "domain", value_name = "DOMAIN")]
    pub(crate) domains: Vec<String>,
    /// BUCKET.DOMAIN is the website of the bucket. May be repeated.
    #[arg(long = "website-domain", value_name = "DOMAIN")]
    pub(crate) website_domains: Vec<String>,
    /// How log lines look.
    #[arg(long, value_enum)]
    pub(crate) log_format: Option<LogFormat>,
    /// Write a line for every change, and for what was refused, to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_log: Option<PathBuf>,
    /// Object ownership of buckets that are created without naming one.
    #[arg(long, value_enum)]
    pub(crate) object_ownership: Option<Ownership>,
    /// Allow the admin address to inject device faults (tests only).
    #[arg(long, hide = true)]
    pub(crate) enable_fault_injection: bool,
    /// How many seconds a day of a lifecycle rule has (tests only).
    #[arg(long, hide = true, value_name = "SECONDS")]
    pub(crate) lifecycle_day_seconds: Option<NonZeroU32>,
}

/// How log lines look.
#[derive(clap::ValueEnum, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Who owns the objects of a new bucket, and so whether access control lists count in it.
#[derive(clap::ValueEnum, Deserialize, Clone, Copy, Debug, Default)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ownership {
    /// The bucket's owner; lists do not count.
    #[default]
    BucketOwnerEnforced,
    /// The bucket's owner where the writer says so.
    BucketOwnerPreferred,
    /// Who writes them.
    ObjectWriter,
}

impl From<Ownership> for ObjectOwnership {
    fn from(ownership: Ownership) -> Self {
        match ownership {
            Ownership::BucketOwnerEnforced => Self::BucketOwnerEnforced,
            Ownership::BucketOwnerPreferred => Self::BucketOwnerPreferred,
            Ownership::ObjectWriter => Self::ObjectWriter,
        }
    }
}

/// The file: the same settings as the flags, by the same names.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct ConfigFile {
    standalone: bool,
    data: Option<PathBuf>,
    devices: Vec<PathBuf>,
    cold_devices: Vec<PathBuf>,
    device_size: Option<Bytes>,
    profile: Option<String>,
    cold_profile: Option<String>,
    listen: Option<SocketAddr>,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    admin: Option<SocketAddr>,
    peer_listen: Option<SocketAddr>,
    cluster_key_file: Option<PathBuf>,
    cores: Option<usize>,
    region: Option<String>,
    object_ownership: Option<Ownership>,
    domains: Vec<String>,
    website_domains: Vec<String>,
    cache_per_device: Option<Bytes>,
    buffers_per_core: Option<Bytes>,
    inline_below: Option<Bytes>,
    repair_per_second: Option<Bytes>,
    scrub_per_second: Option<Bytes>,
    scrub_every_hours: Option<u64>,
    log_format: Option<LogFormat>,
    audit_log: Option<PathBuf>,
    audit_log_size: Option<Bytes>,
    audit_reads: bool,
    cluster: Option<ClusterTable>,
}

/// The table `[cluster]`: which cluster this node belongs to.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ClusterTable {
    /// Name of the cluster: several can share an etcd.
    pub(crate) name: String,
    /// Name of this node, unique in the cluster; default: the host's name.
    #[serde(default)]
    pub(crate) node_name: Option<String>,
    /// Failure domain above the node.
    #[serde(default)]
    pub(crate) rack: String,
    /// Address at which other nodes reach this one, if it is not `peer-listen` itself.
    #[serde(default)]
    pub(crate) peer_address: Option<SocketAddr>,
    /// Seconds after which a silent node counts as lost.
    #[serde(default)]
    pub(crate) lease_ttl_s: Option<u64>,
    /// Where etcd is.
    pub(crate) etcd: EtcdConfig,
}

/// A validated configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Directory for credentials, metastore and device files.
    pub(crate) data: PathBuf,
    /// Where the devices are; empty: six files in `data`, made at the first start.
    pub(crate) devices: Vec<PathBuf>,
    /// Devices of the cold tier.
    pub(crate) cold_devices: Vec<PathBuf>,
    /// Size of device files that are created.
    pub(crate) device_size_bytes: u64,
    /// Erasure profile of new blobs.
    pub(crate) profile: ErasureProfile,
    /// Erasure profile of new blobs of the cold tier, if it is said.
    pub(crate) cold_profile: Option<ErasureProfile>,
    /// S3 endpoint.
    pub(crate) listen: SocketAddr,
    /// Certificate and key of the S3 endpoint; `None`: plain HTTP.
    pub(crate) tls: Option<TlsFiles>,
    /// Metrics and health.
    pub(crate) admin: SocketAddr,
    /// Where other nodes reach this one, and the file of the cluster key.
    pub(crate) peers: Option<(SocketAddr, PathBuf)>,
    /// The cluster to join; `None`: standalone.
    pub(crate) cluster: Option<ClusterTable>,
    /// Executors.
    pub(crate) cores: usize,
    /// Region name that signatures must carry.
    pub(crate) region: String,
    /// What buckets get that are made without saying who owns their objects.
    pub(crate) object_ownership: ObjectOwnership,
    /// Names that lead to buckets and websites.
    pub(crate) domains: Domains,
    /// Index cache of each device.
    pub(crate) cache_per_device_bytes: usize,
    /// Stripe buffers of each core.
    pub(crate) buffers_per_core_bytes: usize,
    /// Bodies shorter than this ride inside the commit record.
    pub(crate) inline_below_bytes: u64,
    /// What repair may read and write, all devices together.
    pub(crate) repair_bytes_per_second: u64,
    /// What the scrub may read, all devices together.
    pub(crate) scrub_bytes_per_second: u64,
    /// Time from one scrub to the next; zero: only when asked for.
    pub(crate) scrub_every: Duration,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// `None`: there is no audit log.
    pub(crate) audit: Option<AuditConfig>,
    /// Whether devices that hold something else may be formatted.
    pub(crate) may_format: bool,
    /// Where new devices are put in the place of lost ones.
    pub(crate) replace: Vec<PathBuf>,
    /// Whether the admin address may inject faults.
    pub(crate) fault_injection: bool,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {} is not valid: {source}", path.display())]
    Malformed { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{name:?} is not a domain name (without port)")]
    NotADomain { name: String },
    #[error("give either --standalone or a configuration file with a table [cluster]")]
    NotStandalone,
    #[error("a node of a cluster needs peer-listen and cluster-key-file")]
    NoPeers,
    #[error("peer-listen is {address}, which others cannot reach: give cluster.peer-address")]
    NoPeerAddress { address: SocketAddr },
    #[error("cluster.lease-ttl-s must be at least 2")]
    LeaseTooShort,
    #[error("cluster.node-name is required: the host has no name ({source})")]
    NoName { source: std::io::Error },
    #[error(transparent)]
    Etcd(#[from] quarry_controller::cluster::ClusterOptionsError),
    #[error("peer-listen and cluster-key-file are given together or not at all")]
    HalfPeers,
    #[error("--data DIR is required")]
    NoData,
    #[error("profile {profile} needs {needed} devices, {given} are given")]
    TooFewDevices { profile: ErasureProfile, needed: usize, given: usize },
    #[error("profile {profile} of the cold tier needs {needed} cold devices, {given} are given")]
    TooFewColdDevices { profile: ErasureProfile, needed: usize, given: usize },
    #[error("tls-certificate and tls-key belong together: set both or neither")]
    HalfTls,
    #[error("device {} is listed twice", path.display())]
    DeviceTwice { path: PathBuf },
    #[error("{name} is {given}, it must be between {least} and {most}")]
    OutOfRange { name: &'static str, given: String, least: String, most: String },
    #[error(transparent)]
    Profile(#[from] quarry_clustermap::ProfileError),
}

/// Device files of the embedded default.
pub(crate) const DEFAULT_DEVICE_COUNT: usize = 6;
const DEFAULT_DEVICE_SIZE: u64 = 4 << 30;
const DEFAULT_BUFFERS: u64 = 64 << 20;
/// Below this a body costs less as part of three commit records than as shards on k+m devices (bench/results).
const DEFAULT_INLINE_BELOW: u64 = 32 << 10;
/// Redundancy comes back soon, and clients keep most of a device.
const DEFAULT_REPAIR_PER_SECOND: u64 = 200 << 20;
const DEFAULT_SCRUB_PER_SECOND: u64 = 50 << 20;
const DEFAULT_SCRUB_EVERY_HOURS: u64 = 7 * 24;
/// Twice as much is kept: the file and the one before it.
const DEFAULT_AUDIT_LOG_SIZE: u64 = 64 << 20;
const DEVICE_SIZE_MIN: u64 = 64 << 20;

/// Names in lower case, from the flags or else from the file.
fn domains(flags: &[String], file: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let names = if flags.is_empty() { file } else { flags.to_vec() };
    let checked = names.into_iter().map(|name| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let is_label = |label: &str| !label.is_empty() && label.bytes().all(allowed);
        if name.split('.').all(is_label) {
            Ok(name.to_ascii_lowercase())
        } else {
            Err(ConfigError::NotADomain { name })
        }
    });
    checked.collect()
}

impl Config {
    /// Merges and validates; opens no device.
    pub(crate) fn load(args: &RunArgs) -> Result<Self, ConfigError> {
        let file = match &args.config {
            Some(path) => ConfigFile::read(path)?,
            None => ConfigFile::default(),
        };
        if (args.standalone || file.standalone) == file.cluster.is_some() {
            return Err(ConfigError::NotStandalone);
        }
        let profile = match (args.profile, &file.profile) {
            (Some(profile), _) => profile,
            (None, Some(text)) => text.parse()?,
            (None, None) => ErasureProfile::new(4, 2).expect("4+2 is in range"),
        };
        let cold_profile = match (args.cold_profile, &file.cold_profile) {
            (None, Some(text)) => Some(text.parse()?),
            (given, _) => given,
        };
        let tls = match (
            args.tls_certificate.clone().or(file.tls_certificate),
            args.tls_key.clone().or(file.tls_key),
        ) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            _ => return Err(ConfigError::HalfTls),
        };
        let devices = if args.devices.is_empty() { file.devices } else { args.devices.clone() };
        let cold_devices =
            if args.cold_devices.is_empty() { file.cold_devices } else { args.cold_devices.clone() };
        let device_count = if devices.is_empty() { DEFAULT_DEVICE_COUNT } else { devices.len() };
        let default_cache = || memory::default_cache_bytes(device_count + cold_devices.len());
        let cache_bytes = file.cache_per_device.map_or_else(default_cache, |size| size.0);
        let default_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let config = Self {
            data: args.data.clone().or(file.data).ok_or(ConfigError::NoData)?,
            devices,
            cold_devices,
            cold_profile,
            device_size_bytes: args
                .device_size
                .or(file.device_size)
                .map_or(DEFAULT_DEVICE_SIZE, |size| size.0),
            profile,
            listen: args.listen.or(file.listen).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9000))),
            tls,
            admin: args.admin.or(file.admin).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9001))),
            peers: match (
                args.peer_listen.or(file.peer_listen),
                args.cluster_key_file.clone().or(file.cluster_key_file),
            ) {
                (Some(address), Some(key)) => Some((address, key)),
                (None, None) => None,
                _ => return Err(ConfigError::HalfPeers),
            },
            cluster: file.cluster,
            cores: args.cores.or(file.cores).unwrap_or(default_cores),
            domains: Domains {
                api: domains(&args.domains, file.domains)?,
                website: domains(&args.website_domains, file.website_domains)?,
            },
            object_ownership: args.object_ownership.or(file.object_ownership).unwrap_or_default().into(),
            region: file.region.unwrap_or_else(|| "us-east-1".into()),
            cache_per_device_bytes: to_usize(cache_bytes),
            buffers_per_core_bytes: to_usize(file.buffers_per_core.map_or(DEFAULT_BUFFERS, |size| size.0)),
            inline_below_bytes: file.inline_below.map_or(DEFAULT_INLINE_BELOW, |size| size.0),
            repair_bytes_per_second: file.repair_per_second.map_or(DEFAULT_REPAIR_PER_SECOND, |rate| rate.0),
            scrub_bytes_per_second: file.scrub_per_second.map_or(DEFAULT_SCRUB_PER_SECOND, |rate| rate.0),
            scrub_every: Duration::from_secs(
                3600 * file.scrub_every_hours.unwrap_or(DEFAULT_SCRUB_EVERY_HOURS),
            ),
            log_format: args.log_format.or(file.log_format).unwrap_or_default(),
            audit: args.audit_log.clone().or(file.audit_log).map(|path| AuditConfig {
                path,
                bytes_max: file.audit_log_size.map_or(DEFAULT_AUDIT_LOG_SIZE, |size| size.0),
                reads: file.audit_reads,
            }),
            may_format: args.format_devices_losing_their_data,
            replace: args.replace_devices.clone(),
            fault_injection: args.enable_fault_injection,
        };
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let given = if self.devices.is_empty() { DEFAULT_DEVICE_COUNT } else { self.devices.len() };
        let needed = self.profile.total();
        // In a cluster the profile is the cluster's, and its shards lie on many nodes.
        if self.cluster.is_none() && given < needed {
            return Err(ConfigError::TooFewDevices { profile: self.profile, needed, given });
        }
        let (profile, given) = (self.cold_profile.unwrap_or(self.profile), self.cold_devices.len());
        if self.cluster.is_none() && (1..profile.total()).contains(&given) {
            return Err(ConfigError::TooFewColdDevices { profile, needed: profile.total(), given });
        }
        let all: Vec<&PathBuf> = self.devices.iter().chain(&self.cold_devices).collect();
        for (index, path) in all.iter().enumerate() {
            if all[..index].contains(path) {
                return Err(ConfigError::DeviceTwice { path: path.to_path_buf() });
            }
        }
        self.validate_cluster()?;
        let range = |name, given: u64, least: u64, most: u64| {
            if (least..=most).contains(&given) {
                return Ok(());
            }
            let text = |value| Bytes(value).to_string();
            Err(ConfigError::OutOfRange { name, given: text(given), least: text(least), most: text(most) })
        };
        range("device-size", self.device_size_bytes, DEVICE_SIZE_MIN, 1 << 50)?;
        range("cache-per-device", self.cache_per_device_bytes as u64, 1 << 20, 1 << 40)?;
        // One stripe being written and one being read, of the widest profile.
        range("buffers-per-core", self.buffers_per_core_bytes as u64, 16 << 20, 1 << 40)?;
        range("inline-below", self.inline_below_bytes, 0, 128 << 10)?;
        if !(1..=256).contains(&self.cores) {
            return Err(ConfigError::OutOfRange {
                name: "cores",
                given: self.cores.to_string(),
                least: "1".into(),
                most: "256".into(),
            });
        }
        Ok(())
    }
}

impl Config {
    fn validate_cluster(&self) -> Result<(), ConfigError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let Some((address, _)) = &self.peers else { return Err(ConfigError::NoPeers) };
        if address.ip().is_unspecified() && cluster.peer_address.is_none() {
            return Err(ConfigError::NoPeerAddress { address: *address });
        }
        if cluster.lease_ttl_s.is_some_and(|seconds| seconds < 2) {
            return Err(ConfigError::LeaseTooShort);
        }
        cluster.etcd.load(&cluster.name)?;
        cluster.name()?;
        Ok(())
    }

    /// The tier of the device at a path.
    pub(crate) fn tier_of(&self, path: &Path) -> Tier {
        if self.cold_devices.iter().any(|cold| cold == path) { Tier::Cold } else { Tier::Hot }
    }

    /// The address that other nodes use; empty for a standalone node.
    pub(crate) fn peer_address(&self) -> String {
        let given = self.cluster.as_ref().and_then(|cluster| cluster.peer_address);
        let address = given.or(self.peers.as_ref().map(|(address, _)| *address));
        address.filter(|_| self.cluster.is_some()).map(|address| address.to_string()).unwrap_or_default()
    }
}

impl ClusterTable {
    /// The node's name.
    pub(crate) fn name(&self) -> Result<String, ConfigError> {
        match &self.node_name {
            Some(name) => Ok(name.clone()),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map(|name| name.trim().to_owned())
                .map_err(|source| ConfigError::NoName { source }),
        }
    }
}

impl ConfigFile {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|source| ConfigError::Malformed { path: path.to_owned(), source: Box::new(source) })
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_cannot_work() {
        let args = |profile: &str, devices: usize| RunArgs {
            standalone: true,
            data: Some("d".into()),
            profile: Some(profile.parse().unwrap()),
            devices: (0..devices).map(|i| format!("device-{i}").into()).collect(),
            ..RunArgs::default()
        };
        assert!(Config::load(&args("4+2", 6)).is_ok());
        assert!(Config::load(&args("1+0", 1)).is_ok());
        assert!(matches!(Config::load(&args("4+2", 5)), Err(ConfigError::TooFewDevices { .. })));
        assert!(matches!(Config::load(&RunArgs::default()), Err(ConfigError::NotStandalone)));
        let twice = RunArgs { devices: vec!["a".into(), "a".into()], ..args("1+0", 1) };
        assert!(matches!(Config::load(&twice), Err(ConfigError::DeviceTwice { .. })));
        let cold = |devices: usize, profile: Option<&str>| RunArgs {
            cold_devices: (0..devices).map(|i| format!("cold-{i}").into()).collect(),
            cold_profile: profile.map(|profile| profile.parse().unwrap()),
            ..args("2+1", 3)
        };
        assert!(matches!(Config::load(&cold(2, None)), Err(ConfigError::TooFewColdDevices { .. })));
        assert!(Config::load(&cold(2, Some("1+1"))).is_ok());
        let config = Config::load(&cold(3, None)).unwrap();
        assert_eq!(config.tier_of(Path::new("cold-1")), Tier::Cold);
        assert_eq!(config.tier_of(Path::new("device-1")), Tier::Hot);
        let both = RunArgs { cold_devices: vec!["device-0".into()], ..cold(1, Some("1+0")) };
        assert!(matches!(Config::load(&both), Err(ConfigError::DeviceTwice { .. })));
    }

    #[test]
    fn a_node_of_a_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.toml");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Config::load(&RunArgs { config: Some(path.clone()), ..RunArgs::default() })
        };
        let cluster = "[cluster]\nname = 'lake'\nnode-name = 'n1'\netcd = { endpoints = ['http://a:1'] }\n";
        let peers = "data = 'd'\npeer-listen = '10.0.0.1:7000'\ncluster-key-file = 'k'\n";
        let config = load(&format!("{peers}{cluster}")).unwrap();
        assert_eq!(config.peer_address(), "10.0.0.1:7000");
        assert!(matches!(load(&format!("data = 'd'\n{cluster}")), Err(ConfigError::NoPeers)));
        let both = load(&format!("standalone = true\n{peers}{cluster}"));
        assert!(matches!(both, Err(ConfigError::NotStandalone)));
        let any = peers.replace("10.0.0.1", "0.0.0.0");
        assert!(matches!(load(&format!("{any}{cluster}")), Err(ConfigError::NoPeerAddress { .. })));
    }

    #[test]
    fn unknown_keys_in_the_file_are_errors() {
        assert!(toml::from_str::<ConfigFile>("standalone = true\nlisten = \"127.0.0.1:1\"").is_ok());
        assert!(toml::from_str::<ConfigFile>("stand-alone = true").is_err());
    }
}
