//! The journal of writes, from which `audit` learns what a server promised.
//!
//! A text file, appended to; one line per event, each written (not flushed to the device: it must survive a crash of the
//! server, not of this machine) before the event takes effect:
//!
//! ```text
//! quarry-journal 1 SEED BUCKET     at the start of each run
//! try KEY VERSION SIZE             before a write is sent; SIZE `-` for a deletion
//! ack KEY VERSION SIZE             the server acknowledged it; written before it is counted
//! no KEY VERSION SIZE              the server certainly did not do it
//! ```
//!
//! A `try` without an answer may or may not have happened. A last line without its newline was never written.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::expect::{Content, Expected};

const MAGIC: &str = "quarry-journal 1 ";

/// An open journal. Lines are written with one system call each, so workers may share it.
pub(crate) struct Journal {
    file: File,
}

#[derive(Clone, Copy)]
pub(crate) enum Event {
    Try,
    Ack,
    No,
}

impl Journal {
    pub(crate) fn open(path: &Path, seed: u64, bucket: &str) -> Result<Self> {
        let open = || -> Result<Self> {
            if path.exists() {
                let earlier = Promises::parse(&std::fs::read_to_string(path)?)?;
                if earlier.seed != seed || earlier.bucket != bucket {
                    bail!("it is of seed {} and bucket {}", earlier.seed, earlier.bucket);
                }
            }
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            if torn(path)? {
                // Not a bare newline: a number cut short would then be read as a whole one.
                file.write_all(b" torn\n")?;
            }
            file.write_all(format!("{MAGIC}{seed} {bucket}\n").as_bytes())?;
            Ok(Self { file })
        };
        open().with_context(|| format!("cannot append to the journal {}", path.display()))
    }

    pub(crate) fn write(&self, event: Event, key: &str, version: u64, content: Content) -> io::Result<()> {
        let event = match event {
            Event::Try => "try",
            Event::Ack => "ack",
            Event::No => "no",
        };
        let size = match content {
            Content::Absent => "-".to_owned(),
            Content::Version { size_bytes, .. } => size_bytes.to_string(),
        };
        (&self.file).write_all(format!("{event} {key} {version} {size}\n").as_bytes())
    }
}

/// Whether the file ends within a line (this tool was killed while writing it).
fn torn(path: &Path) -> io::Result<bool> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.last().is_some_and(|last| *last != b'\n'))
}

/// What each key of a journal may hold.
pub(crate) struct Promises {
    pub(crate) seed: u64,
    pub(crate) bucket: String,
    pub(crate) keys: BTreeMap<String, Expected>,
    pub(crate) acknowledged: u64,
}

impl Promises {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        std::fs::read_to_string(path)
            .map_err(anyhow::Error::from)
            .and_then(|text| Self::parse(&text))
            .with_context(|| format!("cannot use the journal {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut promises: Option<Self> = None;
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines = complete.lines().enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            let bad = || format!("line {} is not of a journal: {line:?}", index + 1);
            if let Some(rest) = line.strip_prefix(MAGIC) {
                let (seed, bucket) = rest.trim().split_once(' ').with_context(bad)?;
                let seed = seed.parse().with_context(bad)?;
                let known = promises.get_or_insert_with(|| Self {
                    seed,
                    bucket: bucket.to_owned(),
                    keys: BTreeMap::new(),
                    acknowledged: 0,
                });
                if known.seed != seed || known.bucket != bucket {
                    bail!("line {}: another seed or bucket", index + 1);
                }
            } else {
                // A line torn by a kill and closed by the next run says nothing: its write was never sent or counted.
                let known = promises.as_mut().with_context(bad)?;
                let next_is_start = lines.peek().is_some_and(|(_, next)| next.starts_with(MAGIC));
                match parse_event(line) {
                    Some((event, key, content)) => known.apply(&event, key, content),
                    None if next_is_start => {}
                    None => bail!(bad()),
                }
            }
        }
        promises.context("it is empty")
    }

    fn apply(&mut self, event: &Event, key: &str, content: Content) {
        // What stood there before the first line is not known: nothing is promised until the first acknowledgement.
        let expected = self.keys.entry(key.to_owned()).or_default();
        match event {
            Event::Try => expected.attempt(content),
            Event::No => expected.reject(content),
            Event::Ack => {
                expected.settle(content);
                self.acknowledged += 1;
            }
        }
    }
}

fn parse_event(line: &str) -> Option<(Event, &str, Content)> {
    let mut fields = line.split(' ');
    let event = match fields.next()? {
        "try" => Event::Try,
        "ack" => Event::Ack,
        "no" => Event::No,
        _ => return None,
    };
    let (key, version) = (fields.next()?, fields.next()?.parse().ok()?);
    let content = match fields.next()? {
        "-" => Content::Absent,
        size => Content::Version { version, size_bytes: size.parse().ok()? },
    };
    fields.next().is_none().then_some((event, key, content))
}

#[cfg(test)]
mod tests {
    use super::{Event, Journal, Promises};
    use crate::expect::Content;

    fn version(version: u64) -> Content {
        Content::Version { version, size_bytes: 10 }
    }

    #[test]
    fn later_attempts_are_accepted_until_settled() {
        let text = "quarry-journal 1 7 bkt\ntry a 1 10\nack a 1 10\ntry a 2 10\ntry b 1 10\nno b 1 10\n\
                    try c 1 10\nack c 1 10\ntry c 2 -\nack c 2 -\ntry d 1 10\nack d 1 1";
        let promises = Promises::parse(text).unwrap();
        assert_eq!((promises.seed, &*promises.bucket, promises.acknowledged), (7, "bkt", 3));
        let accepts = |key: &str, content| promises.keys[key].accepts(content);
        assert!(accepts("a", version(1)) && accepts("a", version(2)) && !accepts("a", Content::Absent));
        assert!(accepts("b", version(9)) && accepts("b", Content::Absent));
        assert!(!accepts("c", version(1)) && accepts("c", Content::Absent));
        // The torn acknowledgement was never counted.
        assert!(accepts("d", version(1)) && accepts("d", Content::Absent));
    }

    #[test]
    fn bad_journals_are_refused() {
        for bad in ["", "try a 1 10\n", "quarry-journal 1 7 b\nack a x 10\n", "quarry-journal 2 7 b\n"] {
            assert!(Promises::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Promises::parse("quarry-journal 1 7 b\nquarry-journal 1 8 b\n").is_err());
    }

    #[test]
    fn runs_append_also_after_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let first = Journal::open(&path, 1, "bkt").unwrap();
        first.write(Event::Try, "k", 5, version(5)).unwrap();
        first.write(Event::Ack, "k", 5, version(5)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"try k 6");
        std::fs::write(&path, bytes).unwrap();
        let second = Journal::open(&path, 1, "bkt").unwrap();
        second.write(Event::Try, "k", 7, Content::Absent).unwrap();
        let promises = Promises::load(&path).unwrap();
        assert_eq!(promises.acknowledged, 1);
        assert!(promises.keys["k"].accepts(version(5)) && promises.keys["k"].accepts(Content::Absent));
        assert!(!promises.keys["k"].accepts(version(6)));
        assert!(Journal::open(&path, 2, "bkt").is_err());
    }
}
