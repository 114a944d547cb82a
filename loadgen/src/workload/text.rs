//! Shared pieces of the notation of workloads.

use std::time::Duration;

/// The values of `name=value` pairs separated by commas, all of which must be there.
pub(super) fn fields<'a, const N: usize>(text: &'a str, names: [&str; N]) -> Result<[&'a str; N], String> {
    let mut values = [None; N];
    for pair in text.split(',') {
        let (name, value) = pair.split_once('=').ok_or(format!("'{pair}' must look like name=value"))?;
        let at = names
            .iter()
            .position(|known| *known == name.trim())
            .ok_or(format!("unknown name '{name}': use {}", names.join(", ")))?;
        values[at] = Some(value.trim());
    }
    let missing = names.iter().zip(&values).find(|(_, value)| value.is_none()).map(|(name, _)| *name);
    match missing {
        Some(name) => Err(format!("{name}= is missing")),
        None => Ok(values.map(Option::unwrap_or_default)),
    }
}

/// A size in the largest unit that divides it.
pub(crate) fn show_bytes(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// A time in the largest unit that divides it.
pub(crate) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match () {
        () if ms > 0 && ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        () if ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        () => format!("{ms}ms"),
    }
}

/// Lets a type that is written as text be a text for serde as well.
macro_rules! string_serde {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}
pub(super) use string_serde;
