//! Arguments of `run` and of the commands around it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{KeyArgs, Payload, ServerArgs, Verify, parse_bucket, parse_duration, parse_prefix, parse_size};
use crate::content::VERSION_MAX;
use crate::workload::Settings;

#[derive(Args, Clone)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// TOML file with the settings of the workload: the names of the flags from --preset on; flags replace them
    #[arg(long, value_name = "FILE")]
    pub(crate) workload: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Bucket; created if missing
    #[arg(long, value_parser = parse_bucket)]
    pub(crate) bucket: String,
    /// Prefix of all keys
    #[arg(long, default_value = "", value_parser = parse_prefix)]
    pub(crate) prefix: String,
    /// Seed of contents, sizes, choices and arrivals
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Version of the first write to each key [default: from the clock, above those of all earlier runs]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..VERSION_MAX / 2))]
    pub(crate) first_version: Option<u64>,
    /// Whether the SHA-256 of a body is part of the signature; hashing is no part of the latency, except of parts
    #[arg(long, value_enum, default_value_t = Payload::Unsigned)]
    pub(crate) payload: Payload,
    /// How to check what is read: every byte, or only lengths
    #[arg(long, value_enum, default_value_t = Verify::Full)]
    pub(crate) verify: Verify,
    /// Attempts after a failed one (5xx, connection, timeout), with growing pauses; latency covers all attempts
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub(crate) retries: u32,
    /// Go on while the server cannot be reached, and take failed operations for a result
    #[arg(long)]
    pub(crate) keep_going: bool,
    /// Open loop: time after the last phase for what is in flight or waiting; the rest counts as failed
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) drain: Duration,
    /// Append every attempt and acknowledgement of a write to this file, for `audit`
    #[arg(long, value_name = "FILE")]
    pub(crate) journal: Option<PathBuf>,
    /// After the run, read back everything that was acknowledged (waits for a server that is restarting)
    #[arg(long, requires = "journal")]
    pub(crate) audit: bool,
    /// Replay this trace (see `record`) instead of a generated workload
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "find_knee", "preset", "phases"])]
    pub(crate) replay: Option<PathBuf>,
    /// Speed of --replay, 0.1 to 100
    #[arg(long, default_value_t = 1.0, value_parser = parse_speed)]
    pub(crate) speed: f64,
    #[command(flatten)]
    pub(crate) knee: KneeArgs,
    #[command(flatten)]
    pub(crate) observe: ObserveArgs,
    /// Show the run to Prometheus at http://ADDRESS/metrics while it lasts
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics_address: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// The search for the highest rate.
#[derive(Args, Clone)]
pub(crate) struct KneeArgs {
    /// Search the highest rate at which all limits hold, beginning at --rate [default: 50], then run the phases at it
    #[arg(long)]
    pub(crate) find_knee: bool,
    /// Highest p99 from the intended start
    #[arg(long, default_value = "100ms", value_parser = parse_duration)]
    pub(crate) knee_p99: Duration,
    /// Highest share of failed operations, in percent
    #[arg(long, default_value_t = 0.1)]
    pub(crate) knee_errors: f64,
    /// Length of a step
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub(crate) knee_step: Duration,
}

/// What is known about the server's use of its machine.
#[derive(Args, Clone)]
pub(crate) struct ObserveArgs {
    /// Process of the server, for its CPU time (may be repeated) [default: who listens on the port, if on this machine]
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Vec<u32>,
    /// Prometheus metrics of the server (http://HOST:PORT/metrics), read before and after the run: CPU seconds if they
    /// hold process_cpu_seconds_total; of Quarry also flushes and the erasure profile
    #[arg(long, value_name = "URL")]
    pub(crate) metrics_url: Option<String>,
}

/// Where the result goes.
#[derive(Args, Clone)]
pub(crate) struct OutputArgs {
    /// Write the whole result as JSON into this file (--json prints it)
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Write the per-second series as CSV
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write the numbers of each operation and phase as CSV
    #[arg(long, value_name = "FILE")]
    pub(crate) csv_operations: Option<PathBuf>,
    /// Write a report with plots as one HTML file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Result of `limits` of the machine, to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) limits: Option<PathBuf>,
    /// No progress on stderr
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Clone)]
pub(crate) struct CompareArgs {
    /// Result of the run to compare with (--out)
    pub(crate) base: PathBuf,
    /// Result of the other run
    pub(crate) other: PathBuf,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone)]
pub(crate) struct RenderArgs {
    /// Result of a run (--out)
    pub(crate) result: PathBuf,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Args, Clone)]
pub(crate) struct LimitsArgs {
    /// Directory on the device to measure; a file in it is written and removed
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Bytes written and read sequentially
    #[arg(long, default_value = "1GiB", value_parser = parse_size)]
    pub(crate) size: u64,
    /// Time of each measurement
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Write the result into this file, for `run --limits`
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone)]
pub(crate) struct RecordArgs {
    /// Access log: Amazon S3's server access log, or the combined format of web servers
    #[arg(long, value_name = "FILE")]
    pub(crate) log: PathBuf,
    /// The trace
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Only requests to this bucket (S3 format; the combined format has it as the first part of the path)
    #[arg(long)]
    pub(crate) bucket: Option<String>,
}

#[derive(Args, Clone)]
pub(crate) struct AgentArgs {
    /// Address to wait for a coordinator on; without --token-file only one of this machine
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: SocketAddr,
    /// File with a secret that the coordinator has to know
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// End after one run
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Args, Clone)]
pub(crate) struct CoordinateArgs {
    /// Agents, as HOST:PORT,HOST:PORT
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) agents: Vec<String>,
    /// File with the secret of the agents
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

fn parse_speed(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('x').parse::<f64>() {
        Ok(speed) if (0.1..=100.0).contains(&speed) => Ok(speed),
        _ => Err("must be 0.1 to 100".into()),
    }
}
