//! Traces: what was asked of a server, by time, to be asked again. See [`crate::access_log`] for where they come from.
//!
//! A text file. Keys became numbers in the order of their first appearance, so a trace tells nothing about names:
//!
//! ```text
//! quarry-trace 1
//! object NUMBER BYTES                        an object that is there before the first operation
//! AT_US OPERATION NUMBER BYTES [OFFSET]      microseconds since the first one; OFFSET of a range
//! ```

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::args::OBJECTS_MAX;
use crate::stats::Operation;

const MAGIC: &str = "quarry-trace 1";
/// Largest object of a trace: S3's.
const BYTES_MAX: u64 = 5 << 40;

/// One recorded operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    /// Microseconds since the first operation.
    pub(crate) at_us: u64,
    pub(crate) operation: Operation,
    pub(crate) object: u64,
    /// Size that is written, or length of the range.
    pub(crate) bytes: u64,
    /// Where the range begins, if that was recorded.
    pub(crate) offset: Option<u64>,
}

/// Operations in the order of time, and the sizes of the objects that they need, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trace {
    pub(crate) objects: Vec<u64>,
    pub(crate) operations: Vec<Recorded>,
}

impl Trace {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(MAGIC) {
            bail!("it does not begin with '{MAGIC}'");
        }
        let mut trace = Self::default();
        for (index, line) in lines.enumerate() {
            let bad = || format!("line {} is not of a trace: {line:?}", index + 2);
            trace.line(line).with_context(bad)?;
        }
        let objects = trace.objects.len() as u64;
        if trace.operations.is_empty() {
            bail!("it has no operations");
        }
        if trace.operations.iter().any(|recorded| recorded.object >= objects) {
            bail!("an operation names an object without a size");
        }
        if !trace.operations.is_sorted_by_key(|recorded| recorded.at_us) {
            bail!("its operations are not in the order of time");
        }
        Ok(trace)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |word: &str| word.parse::<u64>().with_context(|| format!("'{word}' is not a number"));
        match words[..] {
            ["object", name, bytes] => {
                if number(name)? != self.objects.len() as u64 || self.objects.len() as u64 >= OBJECTS_MAX {
                    bail!("objects must be numbered from 0 on");
                }
                self.objects.push(number(bytes)?);
            }
            [at, operation, object, bytes] | [at, operation, object, bytes, _] => {
                self.operations.push(Recorded {
                    at_us: number(at)?,
                    operation: Operation::named(operation).context("unknown operation")?,
                    object: number(object)?,
                    bytes: number(bytes)?,
                    offset: words.get(4).map(|word| number(word)).transpose()?,
                });
            }
            _ => bail!("wrong number of fields"),
        }
        let newest = self.operations.last().map_or(0, |recorded| recorded.bytes);
        if newest.max(self.objects.last().copied().unwrap_or(0)) > BYTES_MAX {
            bail!("S3 objects have at most 5 TiB");
        }
        Ok(())
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("{MAGIC}\n");
        let mut line = |line: std::fmt::Arguments<'_>| writeln!(text, "{line}").expect("writing to a string");
        for (number, bytes) in self.objects.iter().enumerate() {
            line(format_args!("object {number} {bytes}"));
        }
        for Recorded { at_us, operation, object, bytes, offset } in &self.operations {
            let name = operation.name();
            match offset {
                Some(offset) => line(format_args!("{at_us} {name} {object} {bytes} {offset}")),
                None => line(format_args!("{at_us} {name} {object} {bytes}")),
            }
        }
        text
    }

    /// Microseconds from the first to the last operation.
    pub(crate) fn duration_us(&self) -> u64 {
        self.operations.last().map_or(0, |last| last.at_us)
    }
}

#[cfg(test)]
mod tests {
    use super::Trace;

    #[test]
    fn traces_come_back_and_bad_ones_are_refused() {
        let text = "quarry-trace 1\nobject 0 100\nobject 1 0\n0 get 0 100\n1500 range 0 10 5\n2000 put 1 7\n";
        let trace = Trace::parse(text).unwrap();
        assert_eq!((trace.text().as_str(), trace.duration_us()), (text, 2000));
        for bad in [
            "",
            "quarry-trace 2\n",
            "quarry-trace 1\n",
            "quarry-trace 1\nobject 0 1\n5 get 0 1\n4 get 0 1\n",
            "quarry-trace 1\n0 get 0 1\n",
            "quarry-trace 1\nobject 0 1\n0 grab 0 1\n",
            "quarry-trace 1\nobject 0 1\n0 get 0 9999999999999999\n",
        ] {
            assert!(Trace::parse(bad).is_err(), "{bad:?}");
        }
    }
}
