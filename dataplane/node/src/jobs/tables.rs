//! Keeps a copy of the tables of this node's metastore on each device, so that they outlive the data directory: see
//! `quarryctl metastore rebuild`. The file is a frame of its own and is replaced as a whole, so its bytes are a copy.

use std::{
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use quarry_object::cluster::Cluster;
use quarry_storage::store::StoreError;

use crate::{cluster::NodeCluster, host::CoreHost, platform::Platform};

/// Between two looks for something newer; so devices take at most one copy in this time.
const EVERY: Duration = Duration::from_secs(5);

/// The newest content of the file, from the thread that reads it to the cores.
#[derive(Clone, Default, Debug)]
pub(crate) struct Tables(Arc<Mutex<Option<Arc<Vec<u8>>>>>);

impl Tables {
    fn newest(&self) -> Option<Arc<Vec<u8>>> {
        self.0.lock().expect("nothing panics under this lock").clone()
    }

    /// Reads the file whenever it was replaced; for a thread that may block. Never returns.
    pub(crate) async fn follow(self, path: PathBuf) {
        let mut seen: Option<(u64, SystemTime)> = None;
        loop {
            let now = std::fs::metadata(&path).and_then(|of| Ok((of.len(), of.modified()?))).ok();
            if now.is_some() && now != seen {
                match std::fs::read(&path) {
                    Ok(bytes) => {
                        *self.0.lock().expect("nothing panics under this lock") = Some(Arc::new(bytes));
                        seen = now;
                    }
                    Err(error) => tracing::warn!(event = "tables_unreadable", %error),
                }
            }
            tokio::time::sleep(EVERY / 5).await;
        }
    }
}

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(host: Rc<CoreHost<P>>, cluster: Rc<NodeCluster<P>>, tables: Tables) {
    let mut kept: Option<Arc<Vec<u8>>> = None;
    loop {
        let newest = tables.newest();
        let is_new = match (&newest, &kept) {
            (Some(newest), Some(kept)) => !Arc::ptr_eq(newest, kept),
            (newest, _) => newest.is_some(),
        };
        if let Some(content) = newest.filter(|_| is_new) {
            let mut all = true;
            for (id, device) in host.devices() {
                match device.store.keep_copy(&content).await {
                    Ok(()) | Err(StoreError::Failed { .. } | StoreError::Closed) => {}
                    Err(error) => {
                        tracing::warn!(event = "tables_not_on_device", device = %id, %error);
                        all = false;
                    }
                }
            }
            kept = all.then_some(content);
        }
        cluster.sleep(EVERY).await;
    }
}
