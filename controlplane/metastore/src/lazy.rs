//! An etcd that need not be there yet: every call connects first if that has not succeeded before.

use std::time::Duration;

use tokio::sync::OnceCell;

use crate::{
    Entry, Etcd, EtcdOptions, LeaseId, Metastore, MetastoreError, Range, Revision, Transaction, Watch,
};

/// See the module. Calls fail with [`MetastoreError::Unavailable`] until etcd answers.
#[derive(Debug)]
pub struct LazyEtcd {
    options: EtcdOptions,
    connected: OnceCell<Etcd>,
}

impl LazyEtcd {
    /// Connects to nothing yet.
    pub fn new(options: EtcdOptions) -> Self {
        Self { options, connected: OnceCell::new() }
    }

    async fn etcd(&self) -> Result<&Etcd, MetastoreError> {
        self.connected.get_or_try_init(|| Etcd::connect(&self.options)).await
    }
}

impl Metastore for LazyEtcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>, MetastoreError> {
        self.etcd().await?.get(key).await
    }

    async fn range(&self, prefix: &str) -> Result<Range, MetastoreError> {
        self.etcd().await?.range(prefix).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, MetastoreError> {
        self.etcd().await?.keys(prefix).await
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Revision, MetastoreError> {
        self.etcd().await?.transact(transaction).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetastoreError> {
        self.etcd().await?.watch(prefix, from).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetastoreError> {
        self.etcd().await?.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        self.etcd().await?.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetastoreError> {
        self.etcd().await?.revoke_lease(lease).await
    }
}
