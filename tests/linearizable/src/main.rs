//! `quarry-linearizable FILE`: judges a history of `quarry-loadgen history`. Prints a summary as one line of JSON; exit code
//! 1 if there is any key whose history no order explains, 2 if the file cannot be read.

use std::process::ExitCode;

use anyhow::{Context, Result};
use quarry_linearizable::history::{History, Verdict};

fn main() -> ExitCode {
    match judged() {
        Ok(verdict) if verdict.violations.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("quarry-linearizable: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn judged() -> Result<Verdict> {
    let path = std::env::args_os().nth(1).context("give the file of a history")?;
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.to_string_lossy()))?;
    let verdict = History::parse(&text)?.judge();
    println!("{}", serde_json::to_string(&verdict)?);
    for violation in &verdict.violations {
        eprintln!("{violation}");
    }
    Ok(verdict)
}
