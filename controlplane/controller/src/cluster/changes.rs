//! Waiting for changes under some prefixes: says that something changed, not what. Who waits reads what is there.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::select_all};
use quarry_metastore::{Metastore, MetastoreError, Watch};
use tokio::{sync::Notify, task::JoinHandle, time::sleep};

/// Events that come this close together are one.
const TOGETHER: Duration = Duration::from_millis(5);
/// Pause before watches are opened again.
const RETRY: Duration = Duration::from_millis(500);

/// Watches on several prefixes, in a task of their own; dropping it ends them.
#[derive(Debug)]
pub(crate) struct Changes {
    changed: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Changes {
    pub(crate) fn new<M: Metastore>(metastore: M, prefixes: impl IntoIterator<Item = String>) -> Self {
        let changed = Arc::new(Notify::new());
        let prefixes: Vec<String> = prefixes.into_iter().collect();
        let told = Arc::clone(&changed);
        let task = tokio::spawn(async move {
            loop {
                match open(&metastore, &prefixes).await {
                    Ok(watches) => follow(watches, &told).await,
                    Err(error) => tracing::debug!(event = "watch_not_opened", %error),
                }
                sleep(RETRY).await;
            }
        });
        Self { changed, task }
    }

    /// Returns when something may have changed since the last call returned, and once the watches are open: what is read
    /// after that is not missed. May be dropped and called again.
    pub(crate) async fn next(&self) {
        self.changed.notified().await;
    }
}

async fn open(metastore: &impl Metastore, prefixes: &[String]) -> Result<Vec<Watch>, MetastoreError> {
    // Any small range: what counts is from when on.
    let from = metastore.range(super::LEADER_KEY).await?.revision;
    let mut watches = Vec::new();
    for prefix in prefixes {
        watches.push(metastore.watch(prefix, from).await?);
    }
    Ok(watches)
}

/// Until one watch ends.
async fn follow(mut watches: Vec<Watch>, changed: &Notify) {
    loop {
        changed.notify_one();
        let nexts = watches.iter_mut().map(|watch| Box::pin(watch.next()));
        if select_all(nexts).await.0.is_none() {
            return;
        }
        sleep(TOGETHER).await;
        for watch in &mut watches {
            while let Some(Some(_)) = watch.next().now_or_never() {}
        }
    }
}
