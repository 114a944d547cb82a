//! `quarryctl metastore`: fills the metastore of a cluster that has none yet. Nodes and controllers do not run meanwhile, so
//! nobody is asked: it reads data directories and writes to etcd.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, Subcommand};
use quarry_clustermap::NodeId;
use quarry_controller::cluster::{EtcdConfig, NodeIdentity, Tables, migrate, restore};
use quarry_metastore::{Embedded, Etcd};
use serde::Deserialize;
use serde_json::json;

use crate::output::{self, Format};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes a cluster of a stopped standalone node: it becomes the cluster's first node, with all it holds.
    Migrate {
        #[command(flatten)]
        target: Target,
        /// Data directory of the node.
        #[arg(long)]
        data: PathBuf,
        /// What the node is called from now on: `cluster.node-name` of its new configuration.
        #[arg(long)]
        node_name: String,
    },
    /// Fills an empty metastore from what stopped nodes have kept. The newest copy counts: give every data directory
    /// that is left.
    Restore {
        #[command(flatten)]
        target: Target,
        /// Data directory of a node; repeat for each.
        #[arg(long, required = true)]
        data: Vec<PathBuf>,
        /// NUMBER=NAME of a node whose data directory is lost; repeat for each.
        #[arg(long = "lost-node", value_name = "NUMBER=NAME", value_parser = parse_lost)]
        lost_nodes: Vec<(u32, String)>,
    },
}

/// Which metastore is filled.
#[derive(Args)]
pub(crate) struct Target {
    /// Configuration file of a node or a controller, of which the table `[cluster]` is read.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Deserialize)]
struct ConfigFile {
    cluster: ClusterTable,
}

#[derive(Deserialize)]
struct ClusterTable {
    name: String,
    etcd: EtcdConfig,
}

fn parse_lost(text: &str) -> Result<(u32, String), String> {
    let (number, name) = text.split_once('=').ok_or("must look like 3=n3")?;
    let number = number.parse().map_err(|_| format!("{number:?} is not the number of a node"))?;
    Ok((number, name.to_owned()))
}

pub(crate) fn run(verb: Verb, format: Format) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        match verb {
            Verb::Migrate { target, data, node_name } => {
                let to = target.connect().await?;
                let from = Embedded::open(&data).with_context(|| opening(&data))?;
                migrate(&from, &to, &node_name).await?;
                output::one(&json!({ "node": node_name }), &["node"], format)
            }
            Verb::Restore { target, data, lost_nodes } => {
                let to = target.connect().await?;
                let mut names: BTreeMap<NodeId, String> =
                    lost_nodes.into_iter().map(|(number, name)| (NodeId(number), name)).collect();
                let mut kept = Vec::new();
                for directory in &data {
                    let identity = NodeIdentity::read(&directory.join("node.json"))?
                        .with_context(|| format!("{} is not of a node of a cluster", directory.display()))?;
                    names.insert(identity.node, identity.name);
                    kept.push(Tables::open(&directory.join("tables")).with_context(|| opening(directory))?);
                }
                let names: Vec<_> = names.into_iter().collect();
                let version = restore(&kept, &to, &names).await?;
                let result = json!({ "map_version": version, "nodes": names.len() });
                output::one(&result, &["map_version", "nodes"], format)
            }
        }
    })
}

fn opening(directory: &Path) -> String {
    format!("cannot open what {} holds: is its node stopped?", directory.display())
}

impl Target {
    async fn connect(&self) -> anyhow::Result<Etcd> {
        let text = std::fs::read_to_string(&self.config)
            .with_context(|| format!("cannot read {}", self.config.display()))?;
        let file: ConfigFile =
            toml::from_str(&text).with_context(|| format!("{} is not valid", self.config.display()))?;
        let options = file.cluster.etcd.load(&file.cluster.name)?;
        Ok(Etcd::connect(&options).await?)
    }
}
