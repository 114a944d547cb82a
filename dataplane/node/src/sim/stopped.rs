//! A node that was filled and shut down, for tests of what works on stopped nodes.

use std::{rc::Rc, time::Duration};

use quarry_clustermap::DeviceId;
use quarry_object::api::{Attributes, CompletedPart, Completion, Conditions, ObjectStore};
use quarry_storage::device::{Device, SimDevice};

use super::{
    Random,
    clients::{self, BUCKET},
    history::Content,
    machine::{Limits, Machine, NodeParts, device_id},
    verify,
};
use crate::platform::Timer;

/// Bytes looked at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Bytes of the largest object.
const LARGE_BYTES: usize = 200_000;
const LARGE: usize = 24;
/// Enough for an index of several pages.
const SMALL: usize = 120;

/// A device's bytes that are not zero.
pub(crate) struct Image {
    pub(crate) device: DeviceId,
    pub(crate) size_bytes: u64,
    /// Offset and bytes.
    pub(crate) chunks: Vec<(u64, Vec<u8>)>,
}

/// What is left of a node that was shut down.
pub(crate) struct Stopped {
    pub(crate) images: Vec<Image>,
    /// The metastore's file.
    pub(crate) metastore: Vec<u8>,
}

/// Six devices of 4+2 with `large-NN` (also uploaded in parts) and `small-NN` objects, an upload under way, and some
/// objects deleted or replaced; nothing waits to be freed.
pub(crate) fn stopped_node() -> Stopped {
    let machine = Machine::new("4+2", Limits::ROOMY, 1);
    let mut node = machine.start();
    node.run(|node| async move {
        fill(&node).await;
        verify::check_owners(&node).await;
        // Replicas learn with the next tick that what they hold is committed.
        node.timer.sleep(Duration::from_secs(1)).await;
    });
    let metastore = node.shutdown().expect("the controller has written");
    let images = machine.devices.all().iter().enumerate().map(|(index, device)| image(index, device));
    Stopped { images: images.collect(), metastore }
}

async fn fill(node: &Rc<NodeParts>) {
    node.objects.create_bucket(BUCKET).await.unwrap();
    let random = Random::new(1);
    for number in 0..SMALL {
        let small = Content::new(&random, number * 10);
        clients::put(node, &format!("small-{number:02}"), &small).await.unwrap();
    }
    for number in 0..LARGE {
        let large = Content::new(&random, LARGE_BYTES - number * 4096);
        let key = format!("large-{number:02}");
        match number % 6 {
            0 => upload(node, &key, &large, true).await,
            1 => {
                clients::put(node, &key, &large).await.unwrap();
                clients::put(node, &key, &large).await.unwrap();
            }
            _ => clients::put(node, &key, &large).await.unwrap(),
        }
    }
    for number in (0..LARGE).step_by(5) {
        for key in [format!("small-{number:02}"), format!("large-{number:02}")] {
            node.objects.delete_object(BUCKET, &key, None, Conditions::default()).await.unwrap();
        }
    }
    upload(node, "under-way", &Content::new(&random, LARGE_BYTES), false).await;
}

/// One part with shards; while it is under way, also one without.
async fn upload(node: &Rc<NodeParts>, key: &str, content: &Content, complete: bool) {
    let objects = &node.objects;
    let upload = objects.create_upload(BUCKET, key, Attributes::default(), None).await.unwrap();
    objects.put_part(BUCKET, key, &upload, 1, content.body()).await.unwrap();
    if complete {
        let checksums = Default::default();
        let parts = vec![CompletedPart { number: 1, etag: content.etag.clone(), checksums }];
        let parts = Completion { parts, ..Completion::default() };
        objects.complete_upload(BUCKET, key, &upload, parts, Conditions::default()).await.unwrap();
    } else {
        let small = Content::new(&Random::new(2), 1000);
        objects.put_part(BUCKET, key, &upload, 2, small.body()).await.unwrap();
    }
}

fn image(index: usize, device: &SimDevice) -> Image {
    let size_bytes = device.size_bytes();
    let chunks = (0..size_bytes).step_by(CHUNK_BYTES).filter_map(|at| {
        let left = usize::try_from(size_bytes - at).expect("a small device");
        let bytes = device.peek(at, left.min(CHUNK_BYTES));
        (bytes != vec![0; bytes.len()]).then_some((at, bytes))
    });
    Image { device: device_id(index), size_bytes, chunks: chunks.collect() }
}
