//! `quarryd fsck`.

use std::path::Path;

pub(crate) fn run(_data: &Path, _verify: bool, _json: bool) -> anyhow::Result<()> {
    anyhow::bail!("not wired")
}
