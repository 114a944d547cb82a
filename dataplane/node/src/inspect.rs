//! `quarryd inspect`.

use std::path::Path;

pub(crate) fn run(_device: &Path, _json: bool) -> anyhow::Result<()> {
    anyhow::bail!("not wired")
}
