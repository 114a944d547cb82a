//! Several load generators as one: `coordinate` gives each `agent` its part of a run, lets all begin together, and adds
//! up what they counted. Nothing is lost in the sum, because histograms travel and not percentiles.
//!
//! The agents share the seed but nothing else: each has objects under a prefix of its own, so no key has two writers.
//! One connection to each agent carries JSON lines:
//!
//! ```text
//! coordinator -> agent   {"protocol": 1, "token": ..., "spec": ...}
//! agent -> coordinator   {"Prepared": {...}}                            all objects are written
//! coordinator -> agent   "go"
//! agent -> coordinator   {"Measured": {...}}   or, instead of either, {"Failed": "why"}
//! ```
//!
//! An agent serves one coordinator at a time. It uses its own access keys and writes no files; whoever may talk to it can
//! make it load any server with these keys, so it listens on this machine only unless there is a token.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::args::run::{AgentArgs, CoordinateArgs};
use crate::credentials;
use crate::engine::{Engine, Measured, Spec};
use crate::measure;
use crate::observe::Observer;
use crate::output::report::RunReport;
use crate::runtime;

const PROTOCOL: u32 = 1;
/// Longest message: a day of per-second histograms.
const LINE_BYTES_MAX: u64 = 1 << 30;
/// Time to wait for a connection, and for the first line of one.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    token: Option<String>,
    spec: Spec,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Prepared { server_name: Option<String> },
    Measured(Box<Measured>),
    Failed(String),
}

/// One end of a connection.
struct Line {
    reader: BufReader<TcpStream>,
}

impl Line {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(message).context("cannot encode a message")?;
        text.push('\n');
        Ok(self.reader.get_mut().write_all(text.as_bytes())?)
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut text = String::new();
        self.reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut text)?;
        if !text.ends_with('\n') {
            bail!("the connection ended");
        }
        serde_json::from_str(&text).context("not a message of this protocol")
    }
}

/// Serves coordinators, one after the other.
pub(crate) fn agent(args: &AgentArgs) -> Result<ExitCode> {
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    if token.is_none() && !args.listen.ip().is_loopback() {
        bail!("--listen on an address that others can reach needs --token-file");
    }
    let credentials = credentials::find(&args.keys)?;
    let listener =
        TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    eprintln!("agent listens on {}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept().context("cannot accept")?;
        let mut line = Line::new(stream)?;
        if let Err(error) = serve(&mut line, token.as_deref(), credentials.clone()) {
            eprintln!("run of {peer}: {error:#}");
            // The coordinator may be gone, which is then the reason.
            let _ = line.send(&Answer::Failed(format!("{error:#}")));
        }
        if args.once {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn serve(line: &mut Line, token: Option<&str>, credentials: crate::sigv4::Credentials) -> Result<()> {
    line.reader.get_ref().set_read_timeout(Some(HELLO_TIMEOUT))?;
    let Hello { protocol, token: given, spec } = line.receive()?;
    line.reader.get_ref().set_read_timeout(None)?;
    if protocol != PROTOCOL {
        bail!("the coordinator speaks protocol {protocol}, this agent {PROTOCOL}");
    }
    let digest = |token: Option<&str>| token.map(|token| Sha256::digest(token.as_bytes()));
    if digest(token) != digest(given.as_deref()) {
        bail!("the token is wrong");
    }
    let runtime = runtime(spec.threads.max(1))?;
    let phases = spec.workload.phases.clone();
    let mut engine = runtime.block_on(async {
        let mut engine = Engine::new(spec, credentials, None).await?;
        engine.prepare().await?;
        anyhow::Ok(engine)
    })?;
    line.send(&Answer::Prepared { server_name: engine.server_name.clone() })?;
    let go: String = line.receive()?;
    if go != "go" {
        bail!("expected go, got {go}");
    }
    let rate = engine.spec.workload.rate;
    let measured = runtime.block_on(engine.measure(rate, &phases))?;
    line.send(&Answer::Measured(Box::new(measured)))
}

fn read_token(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let token = text.trim().to_owned();
    if token.len() < 16 {
        bail!("the token in {} has fewer than 16 characters", path.display())
    } else {
        Ok(token)
    }
}

/// Runs one workload on all agents.
pub(crate) fn coordinate(args: &CoordinateArgs) -> Result<ExitCode> {
    let run = &args.run;
    if run.knee.find_knee || run.journal.is_some() || run.replay.is_some() {
        bail!("--find-knee, --journal and --replay are for a single load generator");
    }
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let spec = measure::spec(run)?;
    let bounds = run.output.limits.as_deref().map(crate::limits::Bounds::load).transpose()?;
    let (agents, clients) = (&args.agents, args.agents.len() as u64);
    let mut lines = agents.iter().map(|agent| connect(agent)).collect::<Result<Vec<_>>>()?;
    for (client, line) in (0..).zip(&mut lines) {
        let spec = spec.for_client(client, clients);
        line.send(&Hello { protocol: PROTOCOL, token: token.clone(), spec })?;
    }
    let mut server_name = None;
    for (agent, line) in agents.iter().zip(&mut lines) {
        match line.receive().with_context(|| format!("agent {agent}"))? {
            Answer::Prepared { server_name: name } => server_name = name,
            Answer::Failed(why) => bail!("agent {agent}: {why}"),
            Answer::Measured(_) => bail!("agent {agent} measured before it was told to"),
        }
    }
    if !run.output.quiet {
        eprintln!(
            "{clients} agents are ready; running for {:.0} s",
            spec.workload.phases.total().as_secs_f64()
        );
    }
    let small = runtime(1)?;
    let address =
        small.block_on(crate::run::target(&spec.endpoint, spec.timeout, &spec.bucket, spec.seed))?.address;
    let mut observer = small.block_on(Observer::new(&run.observe, address))?;
    small.block_on(observer.begin());
    for line in &mut lines {
        line.send(&"go")?;
    }
    let parts = agents.iter().zip(&mut lines).map(|(agent, line)| {
        match line.receive().with_context(|| format!("agent {agent}"))? {
            Answer::Measured(measured) => Ok(*measured),
            Answer::Failed(why) => Err(anyhow!("agent {agent}: {why}")),
            Answer::Prepared { .. } => Err(anyhow!("agent {agent} prepared twice")),
        }
    });
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let observed = small.block_on(observer.end());
    let measured = sum(parts).context("there are no agents")?;
    let rate = spec.workload.rate;
    let report: RunReport =
        measure::report(&spec, measured, clients, rate, server_name, observed, None, None, bounds);
    measure::deliver(&report, &run.output, run.server.json)?;
    Ok(measure::exit_code(&report, run.keep_going))
}

fn connect(agent: &str) -> Result<Line> {
    let connect = || -> Result<Line> {
        use std::net::ToSocketAddrs;
        let address = agent.to_socket_addrs()?.next().context("it has no address")?;
        Line::new(TcpStream::connect_timeout(&address, HELLO_TIMEOUT)?)
    };
    connect().with_context(|| format!("cannot reach the agent {agent}"))
}

/// What all parts counted together.
fn sum(parts: Vec<Measured>) -> Option<Measured> {
    parts.into_iter().reduce(|mut sum, part| {
        sum.tally.add(&part.tally);
        sum.elapsed = sum.elapsed.max(part.elapsed);
        sum.client_cpu_seconds = sum.client_cpu_seconds.zip(part.client_cpu_seconds).map(|(a, b)| a + b);
        sum.stopped_early = sum.stopped_early.or(part.stopped_early);
        sum
    })
}
