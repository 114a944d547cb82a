//! The command `history`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Endpoint, KeyArgs, parse_bucket, parse_duration, parse_endpoint};

/// `quarry-loadgen history`
#[derive(Args, Clone)]
pub(crate) struct HistoryArgs {
    /// URL of a node: http://HOST:PORT; repeat for each. An operation that fails is tried at the next one
    #[arg(long = "node", required = true, value_parser = parse_endpoint)]
    pub(crate) nodes: Vec<Endpoint>,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[arg(long, default_value = "us-east-1")]
    pub(crate) region: String,
    /// Bucket; it must not exist
    #[arg(long, value_parser = parse_bucket)]
    pub(crate) bucket: String,
    /// Where the history goes, as lines of JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Clients, each with one operation at a time. Even ones try three times, odd ones until they are served
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) clients: u32,
    /// Operations per second, all clients together
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
    /// Keys that all clients write and read; others are written once
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(8..=10_000))]
    pub(crate) hot_keys: u32,
    /// How long [default: until standard input ends]
    #[arg(long, value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Longest time for one attempt once it is connected
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Seed of contents and choices
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}
