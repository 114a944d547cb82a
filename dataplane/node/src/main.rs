//! `quarryd`: one data-plane node.
//!
//! configuration -> devices -> control thread (controller, admin) -> executors -> connections. A dead executor is
//! fatal for the process; SIGTERM and Ctrl-C let requests in progress end, write checkpoints, and exit with 0.

mod audit;
mod cluster;
mod config;
mod control;
mod core;
mod credentials;
mod devices;
mod fsck;
mod host;
mod inspect;
mod jobs;
mod membership;
mod metrics;
mod platform;
mod runs;
mod runtime;
#[cfg(test)]
mod sim;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use quarry_clustermap::{ClusterMap, DeviceState, NodeId};
use quarry_controller::{DeviceReport, NodeRegistration, Registered, StoredMap};
use quarry_metastore::Embedded;
use quarry_object::lifecycle;

use crate::{
    audit::AuditSink,
    cluster::{Progress, Reads, Repairs},
    config::{Cli, Command, Config, LogFormat, RunArgs},
    control::{AdminAccess, AdminState, AdminToken, Control},
    core::Shared,
    credentials::Credentials,
    devices::FoundDevice,
    host::SpaceTable,
    jobs::scrub::ScrubBoard,
    membership::Membership,
    metrics::Metrics,
    runtime::{
        mesh::Inbox,
        net::ClusterKey,
        pulse::{Beginning, CorePulse},
        tls::Tls,
    },
};

/// A request allocates often, and larger pieces than the fast path of the C library's own allocator takes: this one was 10 to 15 %
/// of the CPU of a small request cheaper when it was preloaded (bench/results/2026-11-23-cpu-of-requests.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Short, so that a wake from another thread is seen soon by a busy core; the pulse makes it safe (see there).
const PREEMPT_TIMER: Duration = Duration::from_millis(1);

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Inspect { device, json }) => {
            start_log(LogFormat::Text);
            inspect::run(&device, json)
        }
        Some(Command::Fsck { data, devices, verify_data, json }) => {
            start_log(LogFormat::Text);
            fsck::run(&data, &devices, verify_data, json)
        }
        None => serve(&cli.run),
    }
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("QUARRY_LOG");
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "info,s3s=off".into()))
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

fn serve(args: &RunArgs) -> anyhow::Result<()> {
    let config = Config::load(args)?;
    start_log(config.log_format);
    if args.check_config {
        println!("the configuration is valid");
        return Ok(());
    }
    check_address(&config)?;
    if let Some(seconds) = args.lifecycle_day_seconds {
        tracing::warn!(event = "short_days", seconds, "days of lifecycle rules are shorter than days");
        lifecycle::set_day_for_tests(
            NonZeroU64::from(seconds).saturating_mul(const { NonZeroU64::new(1000).expect("not zero") }),
        );
    }
    std::fs::create_dir_all(&config.data)
        .with_context(|| format!("cannot create {}", config.data.display()))?;
    let credentials = credentials::load(&config.data)?;
    let tls = config.tls.clone().map(Tls::load).transpose()?;
    let Membership { node, map, cluster, leases, plane } = Membership::find(&config)?;
    let peers = match &config.peers {
        Some((address, key)) => Some((*address, ClusterKey::read(key)?)),
        None => None,
    };
    let (cluster, found) = devices::prepare(&config, map.as_ref(), cluster)?;

    let scrub = ScrubBoard::new(config.cores);
    if some_return(map.as_ref(), &found) {
        scrub.ask();
    }
    let (metrics, repairs) = (Metrics::new()?, Repairs::default());
    metrics.set_node(node, repairs.clone(), scrub.clone());
    let audit = start_audit(&config, &metrics)?;
    let audit_sink = audit.as_ref().map(|(sink, _)| sink.clone());
    let faults: BTreeMap<_, _> = found.iter().map(|device| (device.id, Default::default())).collect();
    let injectable = config.fault_injection.then(|| faults.clone());
    let progress = Progress::new(config.cores);
    let access = AdminAccess {
        token: AdminToken::load(&config.data)?,
        root_key: credentials.access_key.clone(),
        progress: progress.clone(),
        data: config.data.clone(),
        audit: audit_sink.clone(),
    };
    let admin = AdminState::new(Arc::clone(&metrics), config.cores, injectable, scrub.clone(), access);
    let stopping = Arc::new(AtomicBool::new(false));
    let policy = Membership::policy(&config, cluster);
    let control = Control::start(&config, plane, policy, (node, Arc::clone(&admin)), Arc::clone(&stopping))?;
    let registration = registration(&config, node, &found);
    let registered = futures::executor::block_on(control.handle.controller().register_node(registration))?;
    devices::FirstStart::end(&config.data)?;

    let pulses: Vec<_> = (0..config.cores).map(|_| Arc::new(CorePulse::default())).collect();
    let pulse_stop = Arc::new(AtomicBool::new(false));
    let pulse = runtime::pulse::start(pulses.clone(), Arc::clone(&pulse_stop))?;
    let renewals =
        tls.as_ref().map(|tls| tls.watch(Arc::clone(&pulse_stop), Arc::clone(&metrics))).transpose()?;
    let Registered { incarnation, published } = registered;
    let shared = Shared {
        node,
        incarnation,
        inboxes: (0..config.cores).map(|_| Inbox::new()).collect(),
        progress,
        reads: Reads::default(),
        repairs,
        scrub: scrub.clone(),
        space: SpaceTable::new(found.iter().map(|device| device.id)),
        recovered: Arc::new(AtomicU64::new(0)),
        drained: Arc::new(AtomicU64::new(0)),
        control: control.handle.clone(),
        admin: Arc::clone(&admin),
        config: config.clone(),
        tls,
        credentials: credentials.clone(),
        devices: found,
        stopping,
        published,
        metrics,
        audit: audit_sink,
        faults,
        pulses,
        peers,
        leases,
        left: Arc::new(AtomicU64::new(0)),
    };
    let announcer = announce(&config, &credentials, admin);
    let result = run_cores(&shared);
    pulse_stop.store(true, Ordering::Relaxed);
    announcer.thread().unpark();
    if let Some(renewals) = renewals {
        renewals.thread().unpark();
    }
    drop(shared);
    control.stop();
    if pulse.join().is_err() {
        tracing::error!(event = "pulse_panicked");
    }
    if let Some((sink, thread)) = audit {
        sink.stop();
        if thread.join().is_err() {
            tracing::error!(event = "audit_panicked");
        }
    }
    result
}

/// The audit log, if one is wanted, and the thread that writes it.
fn start_audit(
    config: &Config,
    metrics: &Metrics,
) -> anyhow::Result<Option<(AuditSink, std::thread::JoinHandle<()>)>> {
    let Some(wanted) = &config.audit else { return Ok(None) };
    let started = AuditSink::start(wanted)
        .with_context(|| format!("cannot write the audit log {}", wanted.path.display()))?;
    metrics.set_audit(started.0.counts());
    Ok(Some(started))
}

/// The executors share the port, so a second node would share it too, and take half of the first one's connections: if
/// somebody answers there, it is refused. As with the devices, the kernel may hold on to the sockets of the last
/// process for a while. (Binding without sharing would tell less: it also fails for connections that have ended.)
fn check_address(config: &Config) -> anyhow::Result<()> {
    const IN_USE_FOR: Duration = Duration::from_secs(10);
    const CONNECT_FOR: Duration = Duration::from_millis(500);
    let mut address = config.listen;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    let started = Instant::now();
    while std::net::TcpStream::connect_timeout(&address, CONNECT_FOR).is_ok() {
        if started.elapsed() > IN_USE_FOR {
            anyhow::bail!(
                "cannot listen on {}: another process answers there (address in use)",
                config.listen
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The map of the last run, if there was one.
fn read_map(metastore: &Embedded) -> anyhow::Result<Option<ClusterMap>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stored = runtime.block_on(StoredMap::read(metastore, None))?;
    Ok(stored.map(|stored| (*stored.map).clone()))
}

/// Whether a device was out: what was known of damage on it is forgotten.
fn some_return(map: Option<&ClusterMap>, found: &[FoundDevice]) -> bool {
    let was_out = |device: &FoundDevice| {
        let entry = map.and_then(|map| map.devices.get(&device.id));
        entry.is_some_and(|entry| entry.state == DeviceState::Out)
    };
    found.iter().any(was_out)
}

fn registration(config: &Config, node: NodeId, found: &[FoundDevice]) -> NodeRegistration {
    let report = |device: &FoundDevice| DeviceReport {
        device: device.id,
        tier: config.tier_of(&device.path),
        capacity_bytes: device.file.size_bytes(),
        location: device.path.display().to_string(),
        found: true,
        replaces: device.replaces,
        lost_partitions: Vec::new(),
    };
    NodeRegistration {
        node,
        address: config.peer_address(),
        rack: config.cluster.as_ref().map(|cluster| cluster.rack.clone()).unwrap_or_default(),
        devices: found.iter().map(report).collect(),
    }
}

/// Runs one pinned executor per core until all have ended; the first error stops the others.
fn run_cores(shared: &Shared) -> anyhow::Result<()> {
    let mut handles = Vec::new();
    for index in 0..shared.config.cores {
        handles.push(start_core(shared, index)?);
    }
    for handle in handles {
        match handle.join() {
            Ok(result) => result?,
            Err(error) => anyhow::bail!("an executor died: {error}"),
        }
    }
    Ok(())
}

/// Starts the executor of a core, again if need be: one that goes to sleep before its first task cannot be woken (see
/// `runtime::pulse`); its thread stays behind, asleep.
fn start_core(shared: &Shared, index: usize) -> anyhow::Result<ExecutorJoinHandle<anyhow::Result<()>>> {
    const PATIENCE: Duration = Duration::from_millis(500);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    loop {
        let shared = shared.clone();
        let beginning = Arc::new(Beginning::default());
        let begun = Arc::clone(&beginning);
        let handle = LocalExecutorBuilder::new(Placement::Fixed(index % cpus))
            .name(&format!("core-{index}"))
            .preempt_timer(PREEMPT_TIMER)
            .spawn(move || async move {
                if !begun.begin() {
                    return Ok(());
                }
                let stopping = Arc::clone(&shared.stopping);
                let result = core::run(shared, index).await;
                if let Err(error) = &result {
                    tracing::error!(event = "core_failed", core = index, %error);
                    // The other cores cannot do without this one's devices.
                    stopping.store(true, Ordering::Release);
                    std::process::exit(1);
                }
                result
            })
            .map_err(|error| anyhow::anyhow!("cannot start executor {index}: {error}"))?;
        if beginning.wait(PATIENCE) {
            return Ok(handle);
        }
        tracing::warn!(event = "executor_overslept", core = index, "it is started again");
    }
}

/// Says where everything is, once every core takes connections.
fn announce(
    config: &Config,
    credentials: &Credentials,
    admin: Arc<AdminState>,
) -> std::thread::JoinHandle<()> {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let endpoint = format!("{scheme}://{}", config.listen);
    let from_environment = std::env::var_os("QUARRY_ACCESS_KEY").is_some();
    let file = config.data.join("credentials");
    let (data, metrics, access_key) = (
        config.data.display().to_string(),
        format!("http://{}/metrics", config.admin),
        credentials.access_key.clone(),
    );
    std::thread::spawn(move || {
        while !admin.is_ready() {
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("Quarry serves S3 at {endpoint}");
        println!("  data         {data}");
        println!("  metrics      {metrics}");
        if from_environment {
            println!("  credentials  from QUARRY_ACCESS_KEY ({access_key}) and QUARRY_SECRET_KEY");
        } else {
            println!("  credentials  {}", file.display());
            println!();
            println!("Try it:");
            println!(
                "  export AWS_SHARED_CREDENTIALS_FILE={}",
                std::path::absolute(&file).unwrap_or(file).display()
            );
        }
        println!("  export AWS_ENDPOINT_URL={endpoint} AWS_DEFAULT_REGION=us-east-1");
        println!("  aws s3 mb s3://lake");
        println!("  aws s3 cp --recursive ./my-parquet-files s3://lake/");
        println!("  aws s3 ls --recursive s3://lake/");
    })
}
