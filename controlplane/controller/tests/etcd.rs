//! Against real processes: three members of etcd and two controllers, killed and paused. Skipped without etcd, unless
//! QUARRY_REQUIRE_ETCD is set.

#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test: it panics, and runs once")]

use std::{
    fs,
    io::ErrorKind,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use quarry_clustermap::{ClusterId, ClusterMap, DeviceId, NodeId, Tier};
use quarry_controller::{
    Controller, ControllerHandle, ControllerOptions, DeviceReport, NodeRegistration, StoredMap,
    cluster::{ClusterView, Member, MemberOptions, NodeIdentity, join},
};
use quarry_metastore::{Etcd, EtcdOptions};
use quarry_planner::{Policy, REBUILD_AFTER_MS};
use tokio::time::{sleep, timeout};

/// A process of the test; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

/// Files that are printed when the test fails.
struct Logs([PathBuf; 2]);

impl Drop for Logs {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for path in &self.0 {
                println!("{}:\n{}", path.display(), fs::read_to_string(path).unwrap_or_default());
            }
        }
    }
}

/// Three members; `None`: etcd is not installed.
fn start_etcd(directory: &Path) -> Option<(Vec<Process>, Vec<String>)> {
    let sockets: Vec<TcpListener> = (0..6).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let urls: Vec<String> = sockets
        .iter()
        .map(|socket| format!("http://127.0.0.1:{}", socket.local_addr().unwrap().port()))
        .collect();
    drop(sockets);
    let (clients, peers) = urls.split_at(3);
    let all: Vec<String> = (0..3).map(|index| format!("m{index}={}", peers[index])).collect();
    let mut members = Vec::new();
    for index in 0..3 {
        let mut command = Command::new("etcd");
        command.args(["--name", &format!("m{index}")]);
        command.arg("--data-dir").arg(directory.join(format!("etcd-{index}")));
        command.args(["--listen-client-urls", &clients[index], "--advertise-client-urls", &clients[index]]);
        command.args(["--listen-peer-urls", &peers[index], "--initial-advertise-peer-urls", &peers[index]]);
        command.args([
            "--initial-cluster",
            &all.join(","),
            "--heartbeat-interval=50",
            "--election-timeout=500",
        ]);
        match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(process) => members.push(Process(process)),
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && std::env::var_os("QUARRY_REQUIRE_ETCD").is_none() =>
            {
                eprintln!("SKIPPED: etcd is not installed (set QUARRY_REQUIRE_ETCD to make this an error)");
                return None;
            }
            Err(error) => panic!("starting etcd: {error}"),
        }
    }
    Some((members, clients.to_vec()))
}

fn options(endpoints: &[String], cluster: &str) -> EtcdOptions {
    EtcdOptions {
        endpoints: endpoints.to_vec(),
        prefix: format!("quarry/{cluster}/"),
        deadline: Duration::from_secs(2),
        ..EtcdOptions::default()
    }
}

async fn connect(options: &EtcdOptions) -> Arc<Etcd> {
    let started = Instant::now();
    loop {
        match Etcd::connect(options).await {
            Ok(etcd) => return Arc::new(etcd),
            Err(error) => assert!(started.elapsed() < Duration::from_secs(30), "{error}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn start_controller(directory: &Path, name: &str, endpoints: &[String]) -> Process {
    let config: PathBuf = directory.join(format!("{name}.toml"));
    let text = format!(
        "name = '{name}'\nprofile = '2+2'\npartitions = 64\nnode-grace-s = 1\npeer-lease-ms = 1000\n\
         [cluster]\nname = 'lake'\nlease-ttl-s = 2\n[cluster.etcd]\nendpoints = {endpoints:?}\n"
    );
    fs::write(&config, text).unwrap();
    let log = fs::File::create(directory.join(format!("{name}.log"))).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_quarry-controller"));
    Process(command.arg("--config").arg(config).stdin(Stdio::null()).stderr(log).spawn().unwrap())
}

fn registration(node: u32) -> NodeRegistration {
    let device = |index: u32| DeviceReport {
        device: DeviceId(u64::from(node * 10 + index)),
        tier: Tier::Hot,
        capacity_bytes: 1 << 30,
        location: format!("d{index}"),
        found: true,
        replaces: None,
        lost_partitions: Vec::new(),
    };
    let (address, rack) = (format!("10.0.0.{node}:7000"), String::new());
    NodeRegistration { node: NodeId(node), address, rack, devices: (0..4).map(device).collect() }
}

async fn start_node(directory: &Path, name: &str, etcd: &EtcdOptions) -> (NodeId, ControllerHandle) {
    let metastore = connect(etcd).await;
    let identity: NodeIdentity = loop {
        match join(&*metastore, &directory.join(format!("{name}.json")), name).await {
            Ok(Some(identity)) => break identity,
            Ok(None) => sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{error}"),
        }
    };
    let node = identity.node;
    let options = MemberOptions {
        identity,
        address: String::new(),
        lease_ttl: Duration::from_secs(2),
        patience: Duration::from_secs(60),
        tables: None,
    };
    let (member, handle) = Member::new(metastore, options);
    tokio::spawn(async move { member.run().await });
    (node, handle)
}

async fn soon<T>(what: &str, seconds: u64, act: impl Future<Output = T>) -> T {
    match timeout(Duration::from_secs(seconds), act).await {
        Ok(done) => done,
        Err(_) => panic!("not within {seconds} s: {what}"),
    }
}

/// The leader once there is one that is not `old`.
async fn next_leader(etcd: &Etcd, old: Option<&str>) -> String {
    loop {
        if let Ok(ClusterView { leader: Some(leader), .. }) = ClusterView::read(etcd).await
            && Some(leader.as_str()) != old
        {
            return leader;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn is_in(map: &ClusterMap, device: u64) -> bool {
    map.is_in(DeviceId(device))
}

#[test]
fn controllers_and_members_of_etcd_die_and_the_cluster_goes_on() {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let Some((mut etcd, endpoints)) = start_etcd(directory.path()) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _logs = Logs([directory.path().join("c1.log"), directory.path().join("c2.log")]);
    tracing_subscriber::fmt().with_test_writer().init();
    runtime.block_on(async {
        let options = options(&endpoints, "lake");
        let store = connect(&options).await;
        let mut controllers =
            ["c1", "c2"].map(|name| (name, start_controller(directory.path(), name, &endpoints)));
        let mut handles = Vec::new();
        for name in ["a", "b", "c"] {
            handles.push(soon("joined", 20, start_node(directory.path(), name, &options)).await);
        }
        let starts = handles.iter().map(|(node, handle)| handle.register_node(registration(node.0)));
        for started in soon("registered", 20, futures::future::join_all(starts)).await {
            assert_eq!(started.unwrap().published.map.partitions.len(), 64);
        }
        let handle = &handles[0].1;

        // The leader is paused: the other one leads, and what the paused one does when it wakes up is refused.
        let first = soon("a leader", 5, next_leader(&store, None)).await;
        let paused = usize::from(controllers[0].0 != first);
        controllers[paused].1.signal("-STOP");
        let at = Instant::now();
        let failed = handle.device_failed(DeviceId(10), "EIO".to_owned());
        let map = soon("handled by the other", 20, failed).await.unwrap().map;
        println!("leader paused: {} ms until the next one acted", at.elapsed().as_millis());
        assert!(!is_in(&map, 10));
        let second = soon("a leader", 5, next_leader(&store, Some(&first))).await;
        controllers[paused].1.signal("-CONT");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(ClusterView::read(&*store).await.unwrap().leader, Some(second));
        let newest = StoredMap::read(&*store, None).await.unwrap().unwrap();
        assert_eq!(newest.map.version, map.version);

        // The leader is killed.
        controllers[1 - paused].1.kill();
        let at = Instant::now();
        let returned = handle.device_returned(DeviceId(10), Vec::new());
        let map = soon("handled by the one left", 20, returned).await.unwrap().map;
        println!("leader killed: {} ms until the next one acted", at.elapsed().as_millis());
        assert!(is_in(&map, 10));

        // A member of etcd is killed, twice out of three times the followers go on at once.
        let leader = etcd_leader(&store, &endpoints).await;
        etcd[leader].kill();
        let at = Instant::now();
        let activate = async {
            while handle.activate(quarry_clustermap::PartitionId(0), map.partitions[0].epoch).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        soon("activated", 20, activate).await;
        println!("leader of etcd killed: {} ms until an activation", at.elapsed().as_millis());
        let failed = handle.device_failed(DeviceId(20), "EIO".to_owned());
        assert!(!is_in(&soon("handled", 20, failed).await.unwrap().map, 20));
    });
}

/// The member that leads etcd.
async fn etcd_leader(_store: &Etcd, endpoints: &[String]) -> usize {
    let listed = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &endpoints.join(","), "endpoint", "status"])
        .output();
    // Without etcdctl any member will do.
    let Ok(listed) = listed else { return 0 };
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    text.lines().position(|line| line.split(", ").nth(4) == Some("true")).unwrap_or(0)
}

#[test]
fn of_many_writers_each_commit_counts_once() {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let Some((_etcd, endpoints)) = start_etcd(directory.path()) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let etcd = options(&endpoints, "contended");
        let policy = Policy {
            cluster: ClusterId([7; 16]),
            hot_profile: "2+2".parse().unwrap(),
            cold_profile: None,
            partition_count: 64,
            rebuild_after_ms: REBUILD_AFTER_MS,
            groups_per_device: 1,
        };
        let mut handles = Vec::new();
        for _ in 0..3 {
            let options = ControllerOptions { policy: policy.clone(), clock_ms: || 0 };
            let (controller, handle) = Controller::new(connect(&etcd).await, options);
            tokio::spawn(controller.run());
            handles.push(handle);
        }
        handles[0].register_node(registration(1)).await.unwrap();
        handles[0].register_node(registration(2)).await.unwrap();
        let before = handles[0].tick().await.unwrap().map.version.0;
        let rounds = 8;
        let write = |handle: ControllerHandle, index: u32| async move {
            for round in 0..rounds {
                let name = format!("bucket-{index}-{round}");
                while handle.create_bucket(&name, 1).await.is_err_and(|error| error.is_retryable()) {}
                while handle.register_node(registration(10 + index)).await.is_err_and(|e| e.is_retryable()) {}
            }
        };
        let writers = handles.iter().cloned().zip(0..).map(|(handle, index)| write(handle, index));
        soon("written", 30, futures::future::join_all(writers)).await;
        let published = handles[0].tick().await.unwrap();
        for index in 0..3 {
            assert_eq!(published.map.nodes[&NodeId(10 + index)].incarnation.0, rounds);
        }
        assert_eq!(published.map.version.0, before + 3 * u64::from(rounds));
        let created = handles[1].create_bucket("last", 1).await.unwrap();
        assert_eq!(created.id.0, 3 * u64::from(rounds) + 1, "no id was given twice");
    });
}
