//! The command line: everything is checked here, before the first connection. [`run`] has the newer commands.

pub(crate) mod history;
pub(crate) mod run;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::content::VERSION_MAX;
use history::HistoryArgs;
use run::{AgentArgs, CompareArgs, CoordinateArgs, LimitsArgs, RecordArgs, RenderArgs, RunArgs};

/// S3 allows no more parts in one upload.
pub(crate) const PARTS_MAX: u64 = 10_000;
pub(crate) const CONCURRENCY_MAX: usize = 10_000;
pub(crate) const OBJECTS_MAX: u64 = 100_000_000;
/// Default working set: this many objects, or fewer that fill [`DEFAULT_SET_BYTES`].
const DEFAULT_OBJECTS: u64 = 1_000;
const DEFAULT_SET_BYTES: u64 = 1 << 30;

/// Load generator for any S3 endpoint: measures, verifies every byte read, and audits what was acknowledged.
///
/// `run` does any workload, in an open or closed loop. The other three, `put`, `get` and `mixed`, are fixed shapes in a
/// closed loop: each of --concurrency workers has one connection and sends its next request when the last one
/// was answered, so a slow server is asked less often, and latencies are those at that reduced rate.
///
/// Objects are named PREFIX + "obj-" + an 8-digit number. In the three fixed shapes worker W of N owns the numbers that leave W modulo N, so no
/// key has two writers. Content follows from --seed, the key and a version number that grows with every write. A read
/// must return the last acknowledged version; after a write with an unknown outcome (connection lost, timeout, 5xx)
/// either is accepted until the next acknowledged write.
///
/// Exit codes: 0 success; 1 wrong or lost content; 2 bad arguments; 3 not started, stopped early, or operations failed
/// (with --keep-going failed operations are only reported).
#[derive(Parser)]
#[command(version, about, long_about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write objects; overwrites them in turn when all --objects exist
    Put(LoadArgs),
    /// Read objects at random and verify them; writes them first unless --no-prepare
    Get(LoadArgs),
    /// A mix of operations on random objects; writes all objects first unless --no-prepare
    Mixed(LoadArgs),
    /// Any workload, in the open or closed loop, with phases, reports and a search for the knee
    Run(Box<RunArgs>),
    /// Show an earlier result of `run` again, as a table, CSV or HTML
    Report(RenderArgs),
    /// Set two results of `run` side by side
    Compare(CompareArgs),
    /// Make a trace for `run --replay` out of an access log
    Record(RecordArgs),
    /// Wait for a coordinator and do its part of a run
    Agent(AgentArgs),
    /// Run one workload on several agents at once
    Coordinate(Box<CoordinateArgs>),
    /// Measure what this machine can do at most: device, memory, loopback
    Limits(LimitsArgs),
    /// Record what clients of several nodes see while these fail, for `quarry-linearizable`
    History(HistoryArgs),
    /// Read back everything that the journal of an earlier run says was acknowledged; exit code 1 on any loss
    Audit(AuditArgs),
}

/// As whom.
#[derive(Args, Clone)]
pub(crate) struct KeyArgs {
    /// Access key [default: environment AWS_ACCESS_KEY_ID, unless --credentials is given]
    #[arg(long, requires = "secret_key", conflicts_with = "credentials")]
    pub(crate) access_key: Option<String>,
    /// Secret key [default: environment AWS_SECRET_ACCESS_KEY]. Other users can see it in the process list
    #[arg(long, requires = "access_key")]
    pub(crate) secret_key: Option<String>,
    /// File with keys in the format of ~/.aws/credentials (the section of --profile)
    #[arg(long, value_name = "FILE")]
    pub(crate) credentials: Option<PathBuf>,
    /// Section of --credentials
    #[arg(long, default_value = "default")]
    pub(crate) profile: String,
}

/// Where to and as whom.
#[derive(Args, Clone)]
pub(crate) struct ServerArgs {
    /// URL of the server: http://HOST:PORT
    #[arg(long, value_parser = parse_endpoint)]
    pub(crate) endpoint: Endpoint,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[arg(long, default_value = "us-east-1", value_parser = parse_plain)]
    pub(crate) region: String,
    /// Threads that run the workers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) threads: u8,
    /// Longest time for one request
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where to, as whom, and with how many workers.
#[derive(Args, Clone)]
pub(crate) struct EndpointArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Workers, each with one connection and one request in flight
    #[arg(long, short = 'c', default_value_t = 8, value_parser = parse_concurrency)]
    pub(crate) concurrency: usize,
}

#[derive(Args, Clone)]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Bucket; created if missing
    #[arg(long, value_parser = parse_bucket)]
    pub(crate) bucket: String,
    /// Size of objects written, such as 4KiB, 64MiB, 1GB or a number of bytes (`get --no-prepare` needs none)
    #[arg(long, value_parser = parse_size, required_unless_present = "no_prepare")]
    pub(crate) size: Option<u64>,
    /// How long operations are started; those in flight at the end are completed and counted
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Distinct objects [default: 1000 or what fills 1 GiB, but at least one for each worker]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=OBJECTS_MAX))]
    pub(crate) objects: Option<u64>,
    /// Whether the SHA-256 of a body is part of the signature (about 1 CPU second per GB of
    /// the client, before the clock of the operation starts; with --part-size within it)
    #[arg(long, value_enum, default_value_t = Payload::Unsigned)]
    pub(crate) payload: Payload,
    /// Upload objects larger than this in parts of this size
    #[arg(long, value_parser = parse_size)]
    pub(crate) part_size: Option<u64>,
    /// Seed of contents and choices
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Version of the first write to each key [default: from the clock, above those of all earlier runs]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..VERSION_MAX / 2))]
    pub(crate) first_version: Option<u64>,
    /// Weights of operations, for `mixed`
    #[arg(long, default_value = "put=30,get=60,delete=5,list=5", value_parser = parse_mix)]
    pub(crate) mix: Mix,
    /// Prefix of all keys
    #[arg(long, default_value = "", value_parser = parse_prefix)]
    pub(crate) prefix: String,
    /// Take the objects that are there (by listing the prefix), whatever their version; it must be of this --seed
    #[arg(long)]
    pub(crate) no_prepare: bool,
    /// How to check what is read: every byte, or only lengths
    #[arg(long, value_enum, default_value_t = Verify::Full)]
    pub(crate) verify: Verify,
    /// Process of the server, for its CPU time (may be repeated) [default: who listens on the port, if on this machine]
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Vec<u32>,
    /// Attempts after a failed one (5xx, connection, timeout), with growing pauses; latency covers all attempts
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub(crate) retries: u32,
    /// Go on while the server cannot be reached, instead of stopping at the first such operation
    #[arg(long)]
    pub(crate) keep_going: bool,
    /// Append every attempt and acknowledgement of a write to this file, for `audit`
    #[arg(long, value_name = "FILE")]
    pub(crate) journal: Option<PathBuf>,
}

#[derive(Args, Clone)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Journal written by `put` or `mixed`; names bucket and seed
    #[arg(long, value_name = "FILE")]
    pub(crate) journal: PathBuf,
    /// Attempts after a failed one (5xx, connection, timeout), with growing pauses
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub(crate) retries: u32,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub(crate) enum Payload {
    Unsigned,
    Signed,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub(crate) enum Verify {
    Full,
    None,
}

/// `http://host:port` taken apart.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Endpoint {
    /// As written, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Value of the Host header.
    pub(crate) authority: String,
}

/// Weights of the operations of `mixed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mix {
    pub(crate) put: u32,
    pub(crate) get: u32,
    pub(crate) delete: u32,
    pub(crate) list: u32,
}

impl Mix {
    pub(crate) const PUT: Self = Self { put: 1, get: 0, delete: 0, list: 0 };
    pub(crate) const GET: Self = Self { put: 0, get: 1, delete: 0, list: 0 };

    pub(crate) fn total(&self) -> u64 {
        [self.put, self.get, self.delete, self.list].map(u64::from).iter().sum()
    }
}

impl LoadArgs {
    /// Number of distinct objects, or what is wrong with the combination of flags.
    pub(crate) fn checked_objects(&self) -> Result<u64, String> {
        if let Some(part) = self.part_size {
            if part == 0 {
                return Err("--part-size must not be 0".into());
            }
            if self.size.unwrap_or(0).div_ceil(part) > PARTS_MAX {
                return Err(format!("--size needs more than {PARTS_MAX} parts of --part-size"));
            }
        }
        let workers = self.endpoint.concurrency as u64;
        match self.objects {
            Some(objects) if objects < workers => Err(format!(
                "--objects {objects} is less than --concurrency {workers}: every worker needs a key of its own"
            )),
            Some(objects) => Ok(objects),
            None => {
                Ok((DEFAULT_SET_BYTES / self.size.unwrap_or(1).max(1)).clamp(1, DEFAULT_OBJECTS).max(workers))
            }
        }
    }
}

fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    if text.starts_with("https://") {
        return Err("TLS is not supported, use http://".into());
    }
    let authority = text.strip_prefix("http://").ok_or("must begin with http://")?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| "bad port")?),
        _ => (authority, 80),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if host.is_empty() || !host.chars().all(plain) {
        return Err("must be http://HOST:PORT without a path".into());
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Ok(Endpoint { host: bare.to_owned(), port, authority: authority.to_owned() })
}

/// A number with a unit: KiB, MiB, GiB, TiB, kB (KB), MB, GB, TB, B or none (bytes).
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(format!("unknown unit '{unit}': use B, KiB, MiB, GiB, TiB, kB, MB, GB or TB")),
    };
    number.checked_mul(factor).filter(|bytes| *bytes <= 1 << 50).ok_or("too large".into())
}

/// A size that stays a text, checked.
pub(crate) fn parse_size_text(text: &str) -> Result<String, String> {
    parse_size(text).map(|_| text.to_owned())
}

/// A number with a unit: ms, s, m or h.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text)?;
    let factor_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" => return Err("needs a unit: ms, s, m or h".into()),
        _ => return Err(format!("unknown unit '{unit}': use ms, s, m or h")),
    };
    match number.checked_mul(factor_ms) {
        Some(0) => Err("must not be 0".into()),
        Some(ms) if ms <= 30 * 24 * 3_600_000 => Ok(Duration::from_millis(ms)),
        _ => Err("too long".into()),
    }
}

fn split_unit(text: &str) -> Result<(u64, &str), String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse().map_err(|_| "must begin with a whole number".to_owned())?;
    Ok((number, text[digits..].trim_start()))
}

fn parse_mix(text: &str) -> Result<Mix, String> {
    let mut weights = BTreeMap::from([("put", 0), ("get", 0), ("delete", 0), ("list", 0)]);
    for part in text.split(',') {
        let (name, weight) = part.split_once('=').ok_or("must look like put=30,get=60,delete=5,list=5")?;
        let slot = weights.get_mut(name.trim()).ok_or(format!("unknown operation '{name}'"))?;
        *slot = weight.trim().parse().map_err(|_| format!("'{weight}' is not a weight"))?;
    }
    let mix =
        Mix { put: weights["put"], get: weights["get"], delete: weights["delete"], list: weights["list"] };
    if mix.total() == 0 { Err("all weights are 0".into()) } else { Ok(mix) }
}

fn parse_bucket(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    if !(3..=63).contains(&text.len()) || !text.chars().all(plain) {
        return Err("must have 3 to 63 characters of a-z, 0-9, '-', '.', '_'".into());
    }
    Ok(text.to_owned())
}

fn parse_prefix(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
    if text.len() > 512 || !text.chars().all(plain) {
        return Err("must have at most 512 characters of A-Z, a-z, 0-9, '-', '.', '_', '~', '/'".into());
    }
    if text.starts_with('/') || text.contains("//") || text.split('/').any(|part| part == "." || part == "..")
    {
        return Err("must not begin with '/' nor hold '//', './' or '../': some servers fold them".into());
    }
    Ok(text.to_owned())
}

fn parse_plain(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if text.is_empty() || !text.chars().all(plain) {
        Err("must be a name".into())
    } else {
        Ok(text.to_owned())
    }
}

fn parse_concurrency(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(workers @ 1..=CONCURRENCY_MAX) => Ok(workers),
        _ => Err(format!("must be 1 to {CONCURRENCY_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory;

    use super::{Cli, Mix, parse_duration, parse_endpoint, parse_mix, parse_prefix, parse_size};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_times_need_known_units() {
        assert_eq!(parse_size("4KiB"), Ok(4096));
        assert_eq!(parse_size("64 MiB"), Ok(64 << 20));
        assert_eq!(parse_size("5MB"), Ok(5_000_000));
        assert_eq!(parse_size("0"), Ok(0));
        for bad in ["", "KiB", "4K", "4kib", "1.5MiB", "-1", "99999999999TiB", "4KiBs"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "30", "0s", "5 days", "1e3s", "999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn endpoints_mixes_and_prefixes() {
        let endpoint = parse_endpoint("http://[::1]:9000/").unwrap();
        assert_eq!((&*endpoint.host, endpoint.port, &*endpoint.authority), ("::1", 9000, "[::1]:9000"));
        assert_eq!(parse_endpoint("http://s3.example").unwrap().port, 80);
        for bad in ["https://h:1", "h:1", "http://", "http://h:99999", "http://h:1/path", "http://a b"] {
            assert!(parse_endpoint(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_mix("put=1, get=2"), Ok(Mix { put: 1, get: 2, delete: 0, list: 0 }));
        for bad in ["", "put", "put=x", "head=1", "put=0"] {
            assert!(parse_mix(bad).is_err(), "{bad}");
        }
        assert!(parse_prefix("a/b-c/").is_ok());
        for bad in ["/a", "a//b", "a b", "ä", "../x"] {
            assert!(parse_prefix(bad).is_err(), "{bad}");
        }
    }
}
