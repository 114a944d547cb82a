//! Against a real etcd: conformance, a restart of etcd under a watch, compaction, and a dead etcd.

use std::{
    io::ErrorKind,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{conforms, next, put, run, value};
use crate::{Entry, Etcd, EtcdOptions, Metastore, MetastoreError, WatchEvent};

/// An etcd of its own; killed when dropped.
struct Server {
    process: Child,
    ports: [u16; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Server {
    /// `None`: etcd is not installed, and nobody insists.
    fn start(data: &Path) -> Option<Self> {
        let sockets = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = sockets.each_ref().map(|socket| socket.local_addr().unwrap().port());
        drop(sockets);
        Some(Self { process: spawn(data, ports)?, ports })
    }

    fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self, data: &Path) {
        self.process = spawn(data, self.ports).unwrap();
    }

    async fn connect(&self) -> Etcd {
        let options = EtcdOptions {
            endpoints: vec![format!("http://127.0.0.1:{}", self.ports[0])],
            prefix: "quarry/test/".to_owned(),
            deadline: Duration::from_secs(2),
            ..EtcdOptions::default()
        };
        let started = Instant::now();
        loop {
            match Etcd::connect(&options).await {
                Ok(etcd) => return etcd,
                Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn spawn(data: &Path, ports: [u16; 2]) -> Option<Child> {
    let [client, peer] = ports.map(|port| format!("http://127.0.0.1:{port}"));
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(data).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    match command.spawn() {
        Ok(process) => Some(process),
        Err(error)
            if error.kind() == ErrorKind::NotFound && std::env::var_os("QUARRY_REQUIRE_ETCD").is_none() =>
        {
            eprintln!("SKIPPED: etcd is not installed (set QUARRY_REQUIRE_ETCD to make this an error)");
            None
        }
        Err(error) => panic!("starting etcd: {error}"),
    }
}

#[test]
fn etcd_conforms() {
    let data = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(data.path()) else { return };
    run(async {
        let etcd = server.connect().await;
        conforms(&etcd).await;
        // Other keys of a shared etcd are neither seen nor touched.
        let mut other = etcd.client.clone();
        other.put("quarry/other/a", "1", None).await.unwrap();
        let seen = etcd.range("").await.unwrap();
        assert!(seen.entries.iter().all(|entry| !entry.key.contains("other/a")));
    });
}

#[test]
fn a_watch_survives_a_restart_of_etcd_and_compaction() {
    let data = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::start(data.path()) else { return };
    run(async {
        let etcd = server.connect().await;
        let from = etcd.transact(&put("a", "1")).await.unwrap();
        let mut watch = etcd.watch("", from).await.unwrap();
        etcd.transact(&put("b", "2")).await.unwrap();
        assert!(matches!(next(&mut watch).await, WatchEvent::Put(Entry { key, .. }) if key == "b"));
        server.stop();
        let dead = etcd.transact(&put("c", "3")).await;
        assert!(matches!(dead, Err(MetastoreError::Unavailable { .. })), "{dead:?}");
        assert!(etcd.get("a").await.is_err());
        server.restart(data.path());
        let second = server.connect().await;
        // The transaction that failed above had no server to reach.
        second.transact(&put("c", "3").expect("c", None)).await.unwrap();
        assert!(matches!(next(&mut watch).await, WatchEvent::Put(Entry { key, .. }) if key == "c"));
        assert_eq!(value(&etcd, "c").await.unwrap(), "3");
        compacted(&second, from).await;
    });
}

async fn compacted(etcd: &Etcd, from: crate::Revision) {
    let newest = etcd.transact(&put("d", "4")).await.unwrap();
    etcd.client.clone().compact(newest.0, None).await.unwrap();
    let mut watch = etcd.watch("", from).await.unwrap();
    let WatchEvent::Snapshot(range) = next(&mut watch).await else { panic!("changes were compacted away") };
    let keys: Vec<&str> = range.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["a", "b", "c", "d"]);
    etcd.transact(&put("e", "5")).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Put(Entry { key, .. }) if key == "e"));
}
