//! `quarryctl NOUN VERB`: administers a node over its admin address.
//!
//! Each noun is one file in `noun`: its verbs (clap), the requests they make, and the columns of its tables. `client`
//! speaks HTTP, `output` prints. Only `metastore` talks to etcd instead of a node.

mod client;
mod noun;
mod output;
mod plan;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{client::Client, output::Format};

#[derive(Parser)]
#[command(name = "quarryctl", version, about = "Administers Quarry")]
struct Cli {
    /// Admin address of a node.
    #[arg(long, global = true, default_value = "http://127.0.0.1:9001")]
    admin: String,
    /// File with the admin token: DATA/admin-token of the node. Else it is taken from QUARRY_ADMIN_TOKEN.
    #[arg(long, global = true, value_name = "PATH")]
    token_file: Option<std::path::PathBuf>,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Subcommand)]
enum Noun {
    /// The state of everything.
    Status,
    /// What about hosts and the map is not as it should be, and what to do; fails if anything is bad.
    Doctor(noun::doctor::Asked),
    /// Where an object lies, why there, and how its shards are.
    Why(noun::why::Asked),
    /// What the cluster is worth, and would be with other devices.
    #[command(subcommand)]
    Plan(noun::what_if::Verb),
    /// Nodes.
    #[command(subcommand)]
    Node(noun::node::Verb),
    /// Devices.
    #[command(subcommand)]
    Device(noun::device::Verb),
    /// Work in the background that moves data between devices.
    #[command(subcommand)]
    Job(noun::job::Verb),
    /// Hot and cold devices, and what moves between them.
    #[command(subcommand)]
    Tier(noun::tier::Verb),
    /// The cluster map: devices and placement groups.
    #[command(subcommand)]
    Map(noun::map::Verb),
    /// Metadata partitions.
    #[command(subcommand)]
    Partition(noun::partition::Verb),
    /// The metastore of a cluster that has none yet.
    #[command(subcommand)]
    Metastore(noun::metastore::Verb),
    /// Users.
    #[command(subcommand)]
    User(noun::user::Verb),
    /// Access keys of users.
    #[command(subcommand)]
    Key(noun::key::Verb),
    /// Policies, and who has them.
    #[command(subcommand)]
    Policy(noun::policy::Verb),
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Noun::Metastore(verb) = cli.noun {
        return noun::metastore::run(verb, cli.output);
    }
    let client = Client::new(&cli.admin, cli.token_file.as_deref())?;
    match cli.noun {
        Noun::Status => noun::status::run(&client, cli.output),
        Noun::Doctor(asked) => noun::doctor::run(&asked, cli.token_file.as_deref(), &client, cli.output),
        Noun::Why(asked) => noun::why::run(&asked, &client, cli.output),
        Noun::Plan(verb) => noun::what_if::run(verb, &client, cli.output),
        Noun::Node(verb) => noun::node::run(verb, &client, cli.output),
        Noun::Device(verb) => noun::device::run(verb, &client, cli.output),
        Noun::Job(verb) => noun::job::run(verb, &client, cli.output),
        Noun::Tier(verb) => noun::tier::run(verb, &client, cli.output),
        Noun::Map(verb) => noun::map::run(verb, &client, cli.output),
        Noun::Partition(verb) => noun::partition::run(verb, &client, cli.output),
        Noun::Metastore(_) => unreachable!("done above, without a node"),
        Noun::User(verb) => noun::user::run(verb, &client, cli.output),
        Noun::Key(verb) => noun::key::run(verb, &client, cli.output),
        Noun::Policy(verb) => noun::policy::run(verb, &client, cli.output),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quarryctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
