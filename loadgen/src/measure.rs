//! The command `run`: from arguments to a result.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::args::run::{OutputArgs, RunArgs};
use crate::args::{Payload, Verify};
use crate::audit;
use crate::client::unix_seconds;
use crate::content::VERSION_MAX;
use crate::credentials;
use crate::engine::knee::{self, Knee, Limits};
use crate::engine::{Engine, Measured, Spec};
use crate::exporter;
use crate::journal::Journal;
use crate::limits::Bounds;
use crate::observe::{Observed, Observer};
use crate::output::report::{AuditSummary, Context as ReportContext, RunReport};
use crate::output::{csv, html, live};
use crate::run::VERSIONS_PER_SECOND;
use crate::sigv4::Signer;
use crate::trace::Trace;
use crate::workload::{Phases, Settings};
use crate::{EXIT_FAILED, EXIT_WRONG, runtime};

/// Rate at which the search for the knee begins.
const FIRST_RATE: f64 = 50.0;
/// Attempts of the audit to read an object: the server may have to start first.
const AUDIT_RETRIES: u32 = 12;

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let spec = spec(args)?;
    let report = runtime(args.server.threads)?.block_on(measure(args, spec))?;
    deliver(&report, &args.output, args.server.json)?;
    Ok(exit_code(&report, args.keep_going))
}

/// 1 for wrong content, 3 for a run that failed, else 0.
pub(crate) fn exit_code(report: &RunReport, keep_going: bool) -> ExitCode {
    let lost = report.audit.as_ref().is_some_and(|audit| audit.lost + audit.wrong + audit.unreadable > 0);
    let failed = report.failed_operations > 0 && !keep_going;
    ExitCode::from(match () {
        () if report.mismatches_total > 0 || lost => EXIT_WRONG,
        () if failed || report.stopped_early.is_some() => EXIT_FAILED,
        () => 0,
    })
}

/// Prints the result and writes the files that were asked for.
pub(crate) fn deliver(report: &RunReport, output: &OutputArgs, json: bool) -> Result<()> {
    let write = |path: &Option<std::path::PathBuf>, text: &dyn Fn() -> Result<String>| -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        std::fs::write(path, text()?).with_context(|| format!("cannot write {}", path.display()))
    };
    let text = || serde_json::to_string(report).context("cannot encode the result");
    write(&output.out, &text)?;
    write(&output.csv, &|| Ok(csv::series(report)))?;
    write(&output.csv_operations, &|| Ok(csv::operations(report)))?;
    write(&output.html, &|| Ok(html::page(report)))?;
    match json {
        true => println!("{}", text()?),
        false => print!("{}", report.table()),
    }
    Ok(())
}

/// Everything that defines the run, checked.
pub(crate) fn spec(args: &RunArgs) -> Result<Spec> {
    let file = args.workload.as_deref().map(Settings::load).transpose()?.unwrap_or_default();
    let mut settings = file.replaced_by(args.settings.clone());
    if args.knee.find_knee && settings.rate.is_none() {
        settings.rate = Some(FIRST_RATE);
    }
    let trace = match &args.replay {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(anyhow::Error::from)
                .and_then(|text| Trace::parse(&text))
                .with_context(|| format!("cannot use the trace {}", path.display()))?,
        ),
        None => None,
    };
    if let Some(trace) = &trace {
        settings.concurrency = settings.concurrency.or(Some(64));
        let duration = Duration::from_micros(trace.duration_us() + 1).div_f64(args.speed);
        settings.phases = Some(Phases::steady(true, duration.max(Duration::from_millis(1))));
        settings.objects = Some(trace.objects.len() as u64);
    }
    let first_version = args.first_version.unwrap_or_else(|| unix_seconds() * VERSIONS_PER_SECOND);
    assert!(first_version < VERSION_MAX, "the clock would have to be past the year 2240");
    Ok(Spec {
        workload: settings.resolve()?,
        endpoint: args.server.endpoint.clone(),
        region: args.server.region.clone(),
        bucket: args.bucket.clone(),
        prefix: args.prefix.clone(),
        seed: args.seed,
        first_version,
        sign_payload: args.payload == Payload::Signed,
        verify: args.verify == Verify::Full,
        retries: args.retries,
        keep_going: args.keep_going,
        timeout: args.server.timeout,
        drain: args.drain,
        threads: args.server.threads,
        client: 0,
        trace,
        speed: args.speed,
    })
}

async fn measure(args: &RunArgs, spec: Spec) -> Result<RunReport> {
    let bounds = args.output.limits.as_deref().map(Bounds::load).transpose()?;
    let credentials = credentials::find(&args.server.keys)?;
    let journal =
        args.journal.as_ref().map(|path| Journal::open(path, spec.seed, &spec.bucket)).transpose()?;
    let mut engine = Engine::new(spec, credentials.clone(), journal).await?;
    let mut observer = Observer::new(&args.observe, engine.target.address).await?;
    let view = (!args.output.quiet).then(|| live::View::start(&engine));
    let _page = args.metrics_address.map(|address| exporter::start(address, &engine.shared)).transpose()?;
    engine.prepare().await?;
    let knee = match args.knee.find_knee {
        true => Some(find_knee(args, &mut engine).await?),
        false => None,
    };
    let rate = knee.as_ref().map_or(engine.spec.workload.rate, |knee| knee.rate);
    observer.begin().await;
    let phases = engine.spec.workload.phases.clone();
    if let Some(view) = &view {
        view.measuring();
    }
    let measured = engine.measure(rate, &phases).await?;
    let observed = observer.end().await;
    drop(view);
    let audit = match (&args.journal, args.audit) {
        (Some(journal), true) => {
            let signer = Signer::new(credentials, engine.spec.region.clone());
            let (endpoint, timeout) = (&engine.spec.endpoint, engine.spec.timeout);
            let report = audit::audit_journal(journal, endpoint, timeout, signer, 8, AUDIT_RETRIES).await?;
            Some(AuditSummary::new(&report))
        }
        _ => None,
    };
    Ok(report(&engine.spec, measured, 1, rate, engine.server_name.clone(), observed, knee, audit, bounds))
}

async fn find_knee(args: &RunArgs, engine: &mut Engine) -> Result<Knee> {
    let limits = Limits {
        p99_ms: args.knee.knee_p99.as_secs_f64() * 1e3,
        error_share: args.knee.knee_errors / 100.0,
        step: args.knee.knee_step,
        first_rate: engine.spec.workload.rate.unwrap_or(FIRST_RATE),
    };
    let quiet = args.output.quiet;
    let knee = knee::search(engine, limits, |step| {
        if !quiet {
            let verdict = step.broke.as_ref().map_or("holds".to_owned(), |limit| format!("breaks {limit}"));
            eprintln!("rate {:>9.1}/s: p99 {:>8.2} ms, {verdict}", step.rate, step.p99_ms);
        }
    })
    .await?;
    if knee.rate.is_none() {
        bail!("no rate holds the limits: even {:?} breaks", knee.steps.last().map(|step| step.rate));
    }
    Ok(knee)
}

/// Puts the result together.
#[allow(clippy::too_many_arguments, reason = "each is one independent source of the report")]
pub(crate) fn report(
    spec: &Spec,
    measured: Measured,
    clients: u64,
    rate: Option<f64>,
    server_name: Option<String>,
    observed: Observed,
    knee: Option<Knee>,
    audit: Option<AuditSummary>,
    bounds: Option<Bounds>,
) -> RunReport {
    let context = ReportContext { spec, clients, rate, server_name, observed, knee, audit };
    let mut report = RunReport::new(context, measured);
    report.bound = bounds.map(|bounds| bounds.judge(&report));
    report
}
