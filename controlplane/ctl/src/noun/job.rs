//! `quarryctl job`

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use crate::{
    client::Client,
    output::{self, Format},
    plan::{self, Consent},
};

const COLUMNS: [&str; 9] =
    ["job", "state", "positions", "replicas", "waiting", "done_lately", "eta_s", "bytes_here", "budget"];

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// What each job has under way (positions of groups, replicas), what waits, and how long it will take at the pace of
    /// the last ten minutes. `bytes_here` is what the node that answers has written since its start, for all jobs.
    List,
    /// It begins nothing more and holds still.
    Pause {
        /// Which.
        job: Job,
        #[command(flatten)]
        consent: Consent,
    },
    /// It goes on.
    Resume {
        /// Which.
        job: Job,
        #[command(flatten)]
        consent: Consent,
    },
    /// Bytes per second that the jobs may read and write on each node.
    Budget {
        /// A number; left out: what each node's configuration says.
        bytes_per_second: Option<u64>,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Job {
    /// Makes anew what was on devices that are out.
    Repair,
    /// Empties devices that are drained.
    Drain,
    /// Evens out what devices hold.
    Rebalance,
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Drain => "drain",
            Self::Rebalance => "rebalance",
        }
    }
}

pub(crate) fn run(verb: Verb, client: &Client, format: Format) -> anyhow::Result<()> {
    match verb {
        Verb::List => output::rows(&client.get("/admin/jobs")?, &COLUMNS, format),
        Verb::Pause { job, consent } => plan::ask(client, &json!({ "pause": job.name() }), &consent, format),
        Verb::Resume { job, consent } => {
            plan::ask(client, &json!({ "resume": job.name() }), &consent, format)
        }
        Verb::Budget { bytes_per_second, consent } => {
            plan::ask(client, &json!({ "budget": bytes_per_second }), &consent, format)
        }
    }
}
