//! Bytes of a shard on its device: which runs cover a range, and reading and writing it, also where it spans several.

use quarry_object::peer::Run;
use quarry_storage::device::{Device, DeviceError, IoBuf};

/// The part of a run list that covers `offset..offset + len` of a shard, as (device offset, length) pieces.
pub(crate) fn pieces(runs: &[Run], offset: u64, len: u64) -> Option<Vec<(u64, u64)>> {
    let (mut skip, mut left, mut found) = (offset, len, Vec::with_capacity(1));
    for run in runs {
        if skip >= run.len_bytes {
            skip -= run.len_bytes;
            continue;
        }
        let take = left.min(run.len_bytes - skip);
        found.push((run.offset + skip, take));
        (skip, left) = (0, left - take);
        if left == 0 {
            return Some(found);
        }
    }
    None
}

/// Writes the whole buffer to the pieces, which are as long together.
pub(crate) async fn write(
    io: &impl Device,
    pieces: &[(u64, u64)],
    buf: IoBuf,
) -> (Result<(), DeviceError>, IoBuf) {
    match pieces[..] {
        [(at, _)] => io.write(at, buf).await,
        // A fragmented device: the block spans extents, so its pieces are copied out.
        _ => (write_pieces(io, pieces, &buf).await, buf),
    }
}

/// Fills the whole buffer from the pieces, which are as long together.
pub(crate) async fn read(
    io: &impl Device,
    pieces: &[(u64, u64)],
    buf: IoBuf,
) -> (Result<(), DeviceError>, IoBuf) {
    match pieces[..] {
        [(at, _)] => io.read(at, buf).await,
        _ => read_pieces(io, pieces, buf).await,
    }
}

async fn write_pieces(io: &impl Device, pieces: &[(u64, u64)], buf: &IoBuf) -> Result<(), DeviceError> {
    let mut from = 0;
    for (at, len) in pieces {
        let to = from + usize::try_from(*len).expect("a piece is part of one buffer");
        io.write(*at, IoBuf::copy_of(&buf[from..to])).await.0?;
        from = to;
    }
    Ok(())
}

async fn read_pieces(
    io: &impl Device,
    pieces: &[(u64, u64)],
    mut buf: IoBuf,
) -> (Result<(), DeviceError>, IoBuf) {
    let mut from = 0;
    for (at, len) in pieces {
        let to = from + usize::try_from(*len).expect("a piece is part of one buffer");
        let (result, piece) = io.read(*at, IoBuf::zeroed(to - from)).await;
        if let Err(error) = result {
            return (Err(error), buf);
        }
        buf[from..to].copy_from_slice(&piece);
        from = to;
    }
    (Ok(()), buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_the_runs() {
        let runs = [Run { offset: 1000, len_bytes: 10 }, Run { offset: 5000, len_bytes: 20 }];
        assert_eq!(pieces(&runs, 0, 10), Some(vec![(1000, 10)]));
        assert_eq!(pieces(&runs, 8, 4), Some(vec![(1008, 2), (5000, 2)]));
        assert_eq!(pieces(&runs, 10, 20), Some(vec![(5000, 20)]));
        assert_eq!(pieces(&runs, 25, 6), None);
    }
}
