//! Messages between cores and nodes.

use quarry_clustermap::{BucketId, Epoch, PartitionId, PgId, ShardIndex};
use quarry_object::peer::{PeerFault, PeerRequest, PeerResponse, Run, ShardEntry, ShardName};
use quarry_partition::command::Framed;

use crate::{
    Random, Target,
    partition::{blob_id, command, envelope, seal_frame},
};

pub(crate) const PEER: Target = Target {
    name: "peer",
    sample: |random| if random.one_in(2) { request(random).encode() } else { response(random).encode() },
    seal: seal_frame,
    decode: |bytes| {
        let request = PeerRequest::decode(bytes);
        if let Ok(request) = &request {
            assert_eq!(PeerRequest::decode(&request.encode()).as_ref(), Ok(request));
        }
        let response = PeerResponse::decode(bytes);
        if let Ok(response) = &response {
            assert_eq!(PeerResponse::decode(&response.encode()).as_ref(), Ok(response));
        }
        request.is_ok() || response.is_ok()
    },
    factor: 24,
    constant: 8 << 10,
};

fn request(random: &mut Random) -> PeerRequest {
    let name = ShardName { pg: PgId(3), blob: blob_id(random), shard: ShardIndex(random.byte()) };
    let (epoch, partition) = (Epoch(random.number()), PartitionId(200));
    match random.below(17) {
        0 => {
            let remote = random.one_in(2);
            PeerRequest::ReserveShard { name, epoch, len_bytes: random.number(), remote }
        }
        1 => {
            let checksums = random.list(40, |_| 7);
            PeerRequest::CommitShard { name, epoch, owner: partition, checksums }
        }
        2 => PeerRequest::AbortShard { name, epoch },
        3 => PeerRequest::OpenShard { name, remote: random.one_in(2) },
        4 => PeerRequest::CloseShard { name, pin: random.number() },
        5 => PeerRequest::Execute { partition, command: command(random).encode() },
        6 => {
            let message = envelope(random).encode().expect("short").to_vec();
            PeerRequest::Replicate { messages: vec![message] }
        }
        7 => PeerRequest::List { list: command(random).encode() },
        8 => PeerRequest::FenceGroup { pg: PgId(4), epoch: Epoch(random.number()) },
        9 => PeerRequest::ListShards { pg: PgId(4), after: None, limit: 7 },
        10 => {
            let name =
                |random: &mut Random| ShardName { pg: PgId(1), blob: blob_id(random), shard: ShardIndex(2) };
            PeerRequest::ShardLengths { names: random.list(9, name) }
        }
        11 => PeerRequest::WriteShard { name, epoch, offset: random.number() },
        12 => {
            let (pin, offset) = (random.number(), random.number());
            PeerRequest::ReadShard { name, pin, offset, len_bytes: 4096 }
        }
        13 => PeerRequest::FreeShard { name, epoch },
        14 => PeerRequest::FullDevices,
        15 => PeerRequest::Quarantine { run: Run { offset: random.number(), len_bytes: random.number() } },
        _ => PeerRequest::BucketIsEmpty { bucket: BucketId(random.number()) },
    }
}

fn response(random: &mut Random) -> PeerResponse {
    let run = |random: &mut Random| Run { offset: random.number(), len_bytes: random.number() };
    match random.below(9) {
        0 => PeerResponse::Reserved { runs: random.list(5, run) },
        1 => {
            let (runs, checksums) = (random.list(5, run), random.list(40, |_| 7));
            PeerResponse::Opened {
                pin: 3,
                len_bytes: random.number(),
                runs,
                checksums,
                owner: PartitionId(5),
            }
        }
        2 => PeerResponse::Executed { outcome: random.bytes(200) },
        3 => PeerResponse::Listed { page: random.bytes(200), partitions: random.list(9, |_| PartitionId(4)) },
        4 => PeerResponse::Empty { empty: true, partitions: random.list(9, |_| PartitionId(4)) },
        5 => PeerResponse::Failed(PeerFault::Device { detail: random.text(40) }),
        6 => {
            PeerResponse::Lengths { lengths: random.list(9, |random| random.maybe(|random| random.number())) }
        }
        7 => {
            let entry = |random: &mut Random| ShardEntry {
                blob: blob_id(random),
                shard: ShardIndex(2),
                owner: PartitionId(3),
            };
            PeerResponse::Shards { shards: random.list(9, entry) }
        }
        _ => PeerResponse::Done,
    }
}
