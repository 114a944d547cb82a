//! `quarry-fuzz [--seed S] [--seconds N] [--target NAME]` runs every target for N seconds.
//! `quarry-fuzz --replay TARGET SEED:NUMBER|HEX` feeds one input again, with the panic's own message.

use std::{fs, process::ExitCode, time::Duration};

use quarry_fuzz::{Failure, TARGETS, Target, campaign, input, judge};

const USAGE: &str =
    "usage: quarry-fuzz [--seed S] [--seconds N] [--target NAME] | --replay TARGET SEED:NUMBER|HEX";

struct Arguments {
    seed: u64,
    seconds: u64,
    target: Option<String>,
    replay: Option<(String, String)>,
}

fn arguments() -> Option<Arguments> {
    let mut found = Arguments { seed: 1, seconds: 20, target: None, replay: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seed" => found.seed = words.next()?.parse().ok()?,
            "--seconds" => found.seconds = words.next()?.parse().ok()?,
            "--target" => found.target = Some(words.next()?),
            "--replay" => found.replay = Some((words.next()?, words.next()?)),
            _ => return None,
        }
    }
    Some(found)
}

fn replay(target: &Target, what: &str) -> Option<ExitCode> {
    let bytes = match what.split_once(':') {
        Some((seed, number)) => input(target, seed.parse().ok()?, number.parse().ok()?).0,
        None => hex::decode(what).ok()?,
    };
    println!("{}: {} bytes: {}", target.name, bytes.len(), hex::encode(&bytes));
    let judged = judge(target, &bytes);
    println!("{judged:?}");
    Some(if judged.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(target: &Target, seed: u64, failure: &Failure) {
    let Failure { number, input, problem } = failure;
    println!("{}: {problem:?}", target.name);
    println!("replay with: quarry-fuzz --replay {} {seed}:{number}", target.name);
    let path = std::env::temp_dir().join(format!("quarry-fuzz-{}-{seed}-{number}.hex", target.name));
    match fs::write(&path, hex::encode(input)) {
        Ok(()) => println!("{} bytes of input, as hex in {}", input.len(), path.display()),
        Err(_) => println!("input: {}", hex::encode(input)),
    }
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if let Some((name, what)) = &arguments.replay {
        let target = TARGETS.iter().find(|target| target.name == name);
        return target.and_then(|target| replay(target, what)).unwrap_or_else(|| {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        });
    }
    std::panic::set_hook(Box::new(|_| {}));
    let mut code = ExitCode::SUCCESS;
    let seed = arguments.seed;
    println!("seed {seed}");
    for target in TARGETS {
        if arguments.target.as_ref().is_some_and(|name| name != target.name) {
            continue;
        }
        match campaign(target, seed, Duration::from_secs(arguments.seconds), u64::MAX) {
            Ok(done) => println!(
                "{}: {} inputs, {} damaged ones accepted, at most {} KiB each",
                target.name,
                done.inputs,
                done.accepted_damaged,
                done.peak_bytes / 1024
            ),
            Err(failure) => {
                code = ExitCode::FAILURE;
                tell(target, seed, &failure);
            }
        }
    }
    code
}
