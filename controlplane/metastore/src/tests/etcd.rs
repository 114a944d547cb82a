//! Against a real etcd: conformance, a restart of etcd under a watch, compaction, and a dead etcd.

use std::{
    io::ErrorKind,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{conforms, next, put, run, value};
use crate::{Entry, Etcd, EtcdOptions, EtcdTls, EtcdUser, LazyEtcd, Metastore, MetastoreError, WatchEvent};

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
        self.connect_with(&[]).await
    }

    /// With endpoints of others before it.
    async fn connect_with(&self, others: &[u16]) -> Etcd {
        let ports = others.iter().chain(&self.ports[..1]);
        let options = EtcdOptions {
            endpoints: ports.map(|port| format!("http://127.0.0.1:{port}")).collect(),
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
    spawn_with(data, ports, "http", &[])
}

fn spawn_with(data: &Path, ports: [u16; 2], scheme: &str, more: &[&str]) -> Option<Child> {
    let (client, peer) =
        (format!("{scheme}://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
    let mut command = Command::new("etcd");
    command.args(more);
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

/// An authority, and certificates for the server and for us; `None`: there is no openssl.
fn certificates(directory: &Path) -> Option<()> {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(directory);
        let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        match done {
            Ok(status) => {
                assert!(status.success(), "openssl {arguments}");
                Some(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => panic!("starting openssl: {error}"),
        }
    };
    const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {KEY} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"))?;
    std::fs::write(
        directory.join("names"),
        "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n",
    )
    .unwrap();
    for name in ["server", "client"] {
        openssl(&format!("req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"))?;
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile names"
        ))?;
    }
    Some(())
}

#[test]
fn certificates_and_users_are_checked() {
    let data = tempfile::tempdir().unwrap();
    let Some(()) = certificates(data.path()) else { return };
    let sockets = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let ports = sockets.each_ref().map(|socket| socket.local_addr().unwrap().port());
    drop(sockets);
    let path = |name: &str| data.path().join(name).display().to_string();
    let more = [
        "--client-cert-auth".to_owned(),
        format!("--trusted-ca-file={}", path("ca.pem")),
        format!("--cert-file={}", path("server.pem")),
        format!("--key-file={}", path("server.key")),
    ];
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let Some(process) = spawn_with(&data.path().join("etcd"), ports, "https", &more) else { return };
    let server = Server { process, ports };
    let read = |name: &str| std::fs::read(data.path().join(name)).unwrap();
    let identity = Some((read("client.pem"), read("client.key")));
    let tls = EtcdTls { authority: read("ca.pem"), identity };
    let options = EtcdOptions {
        endpoints: vec![format!("https://127.0.0.1:{}", server.ports[0])],
        prefix: "quarry/test/".to_owned(),
        deadline: Duration::from_secs(2),
        tls: Some(tls.clone()),
        user: None,
    };
    run(async {
        let started = Instant::now();
        let etcd = loop {
            match Etcd::connect(&options).await {
                Ok(etcd) => break etcd,
                Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        etcd.transact(&put("a", "1")).await.unwrap();
        let anonymous = EtcdTls { identity: None, ..tls };
        let refused = Etcd::connect(&EtcdOptions { tls: Some(anonymous), ..options.clone() }).await;
        assert!(matches!(refused, Err(MetastoreError::Unavailable { .. })), "{refused:?}");

        let mut admin = etcd.client().await;
        admin.user_add("root", "secret", None).await.unwrap();
        admin.role_add("root").await.unwrap();
        admin.user_grant_role("root", "root").await.unwrap();
        admin.auth_enable().await.unwrap();
        let user = |password: &str| Some(EtcdUser { name: "root".to_owned(), password: password.to_owned() });
        let known = LazyEtcd::new(EtcdOptions { user: user("secret"), ..options.clone() });
        known.transact(&put("b", "2")).await.unwrap();
        assert_eq!(value(&known, "b").await.unwrap(), "2");
        let wrong = LazyEtcd::new(EtcdOptions { user: user("guess"), ..options.clone() });
        assert!(wrong.get("b").await.is_err());
        assert!(!format!("{:?}", EtcdOptions { user: user("secret"), ..options }).contains("secret"));
    });
}

#[test]
fn etcd_conforms() {
    let data = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(data.path()) else { return };
    run(async {
        let etcd = server.connect().await;
        conforms(&etcd).await;
        // Other keys of a shared etcd are neither seen nor touched.
        let mut other = etcd.client().await;
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
    etcd.client().await.compact(newest.0, None).await.unwrap();
    let mut watch = etcd.watch("", from).await.unwrap();
    let WatchEvent::Snapshot(range) = next(&mut watch).await else { panic!("changes were compacted away") };
    let keys: Vec<&str> = range.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["a", "b", "c", "d"]);
    etcd.transact(&put("e", "5")).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Put(Entry { key, .. }) if key == "e"));
}

#[test]
fn members_that_refuse_or_are_silent_are_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(directory.path()) else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = [&refusing, &silent].map(|socket| socket.local_addr().unwrap().port());
    drop(refusing);
    run(async {
        let etcd = server.connect_with(&ports).await;
        for turn in 0..3 {
            // Whoever is asked first: one call finds the one that answers, and all after it ask that one.
            etcd.turn_to(turn);
            etcd.get("key").await.unwrap();
            for round in 0..20 {
                let round = round.to_string();
                etcd.transact(&put("key", &round)).await.unwrap();
                assert_eq!(value(&etcd, "key").await, Some(round));
            }
        }
    });
}
