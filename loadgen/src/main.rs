//! `quarry-loadgen`: a load generator and durability auditor for any S3 endpoint, by the wire protocol only.
//!
//! [`content`] makes bodies that name their key and version, [`expect`] knows what each key may hold and checks bodies
//! against it, [`client`] and [`sigv4`] speak S3, [`journal`] and [`mod@audit`] prove that what a server acknowledged is
//! still there.
//!
//! The commands `put`, `get` and `mixed`: [`worker`] is one closed loop, [`mod@run`] a measured run of many, [`report`] its
//! result. The command `run`: [`workload`] says what to do, [`engine`] does it, [`observe`] looks at the server,
//! [`output`] reports, [`limits`] knows the machine, [`agents`] are several load generators as one, [`access_log`] and
//! [`trace`] replay what was asked of another server. [`mod@history`] records for a judge of consistency. See `--help`
//! and docs/loadgen.md for use.

mod access_log;
mod agents;
mod args;
mod audit;
mod client;
mod content;
mod credentials;
mod engine;
mod expect;
mod exporter;
mod history;
mod journal;
mod limits;
mod measure;
mod observe;
mod output;
mod process;
mod report;
mod run;
mod sigv4;
mod stats;
mod trace;
mod worker;
mod workload;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use clap::error::ErrorKind;
use serde::Serialize;
use tokio::runtime::Builder;

use args::run::{CompareArgs, LimitsArgs};
use args::{AuditArgs, Cli, Command, LoadArgs};
use output::compare;
use run::Mode;

pub(crate) const EXIT_WRONG: u8 = 1;
pub(crate) const EXIT_FAILED: u8 = 3;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Put(args) => load(Mode::Put, &args),
        Command::Get(args) => load(Mode::Get, &args),
        Command::Mixed(args) => load(Mode::Mixed, &args),
        Command::Run(args) => measure::run(&args),
        Command::Report(args) => compare::load(&args.result)
            .and_then(|report| measure::deliver(&report, &args.output, false))
            .map(|()| ExitCode::SUCCESS),
        Command::Compare(args) => compared(&args),
        Command::Record(args) => access_log::record(&args).map(|told| {
            print!("{told}");
            ExitCode::SUCCESS
        }),
        Command::Agent(args) => agents::agent(&args),
        Command::Coordinate(args) => agents::coordinate(&args),
        Command::Limits(args) => measured_limits(&args),
        Command::History(args) => history::run(&args),
        Command::Audit(args) => audit(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("quarry-loadgen: {error:#}");
        ExitCode::from(EXIT_FAILED)
    })
}

fn load(mode: Mode, args: &LoadArgs) -> Result<ExitCode> {
    if mode != Mode::Get && args.size.is_none() {
        clap::Error::raw(ErrorKind::MissingRequiredArgument, "only get --no-prepare goes without --size\n")
            .exit();
    }
    if let Err(problem) = args.checked_objects() {
        clap::Error::raw(ErrorKind::ValueValidation, format!("{problem}\n")).exit();
    }
    let report = runtime(args.endpoint.server.threads)?.block_on(run::load(mode, args))?;
    show(args.endpoint.server.json, &report, || report.table())?;
    let failed = report.failed_operations > 0 && !args.keep_going;
    Ok(ExitCode::from(match () {
        () if report.mismatches_total > 0 => EXIT_WRONG,
        () if failed || report.stopped_early.is_some() => EXIT_FAILED,
        () => 0,
    }))
}

fn audit(args: &AuditArgs) -> Result<ExitCode> {
    let report = runtime(args.endpoint.server.threads)?.block_on(audit::audit(args))?;
    show(args.endpoint.server.json, &report, || report.table())?;
    Ok(ExitCode::from(if report.passed() { 0 } else { EXIT_WRONG }))
}

fn compared(args: &CompareArgs) -> Result<ExitCode> {
    let comparison = compare::compare(&compare::load(&args.base)?, &compare::load(&args.other)?);
    show(args.json, &comparison, || comparison.table())?;
    Ok(ExitCode::SUCCESS)
}

fn measured_limits(args: &LimitsArgs) -> Result<ExitCode> {
    let bounds = limits::measure(args)?;
    if let Some(path) = &args.out {
        let text = serde_json::to_string_pretty(&bounds).context("cannot encode the result")?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    show(args.json, &bounds, || bounds.table())?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn runtime(threads: u8) -> Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(usize::from(threads)).enable_all().build().context("cannot start the runtime")
}

fn show(json: bool, report: &impl Serialize, table: impl Fn() -> String) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(report).context("cannot encode the result")?);
    } else {
        print!("{}", table());
    }
    Ok(())
}
