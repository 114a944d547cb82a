//! `quarryctl metastore rebuild`: a metastore made anew from the copies on devices, when it and every data directory are
//! lost. Devices are only read, and locked as long as that takes: nobody runs on them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures::executor::block_on;
use quarry_clustermap::DeviceId;
use quarry_controller::cluster::Tables;
use quarry_storage::{
    device::{DeviceError, DeviceFile, OpenMode, SyncDevice},
    store::{Store, StoreOptions},
};
use tempfile::TempDir;

/// The kernel holds on to the devices of a process that has just ended for as long.
const IN_USE_FOR: Duration = Duration::from_secs(5);

/// What was found on one device.
struct Found {
    device: DeviceId,
    content: Vec<u8>,
}

/// Tables of devices, each opened from a directory of its own that goes with this.
pub(super) struct FromDevices {
    pub(super) tables: Vec<Tables>,
    pub(super) devices: usize,
    _directories: Vec<TempDir>,
}

/// Reads every device; one that cannot be read, or holds no copy, is told of and left out.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<FromDevices> {
    let mut contents: BTreeMap<Vec<u8>, Vec<DeviceId>> = BTreeMap::new();
    let mut devices = 0;
    for path in paths {
        match read_one(path) {
            Ok(Some(Found { device, content })) => {
                contents.entry(content).or_default().push(device);
                devices += 1;
            }
            Ok(None) => eprintln!("{}: holds no copy of the tables", path.display()),
            Err(error) => eprintln!("{}: {error:#}", path.display()),
        }
    }
    if contents.is_empty() {
        bail!("no copy of the tables was found");
    }
    let (mut tables, mut directories) = (Vec::new(), Vec::new());
    for content in contents.keys() {
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        std::fs::write(directory.path().join("metastore"), content)?;
        tables.push(Tables::open(directory.path())?);
        directories.push(directory);
    }
    Ok(FromDevices { tables, devices, _directories: directories })
}

fn read_one(path: &Path) -> anyhow::Result<Option<Found>> {
    let _lock = lock(path)?;
    let device = Rc::new(SyncDevice::new(DeviceFile::open(path, OpenMode::ReadOnly)?));
    // Entries of partitions are not looked at.
    let options = StoreOptions::new(Rc::new(|_| {}), Rc::new(|_: &[u8]| Ok(Vec::new())));
    let store = block_on(Store::open_read_only(device, options)).context("it cannot be recovered")?;
    let content = block_on(store.kept_copy())?;
    Ok(content.map(|content| Found { device: store.device_id(), content: content.to_vec() }))
}

/// Opened for writing because that takes the lock; where writing is not allowed it goes without.
fn lock(path: &Path) -> Result<DeviceFile, DeviceError> {
    let started = Instant::now();
    loop {
        match DeviceFile::open(path, OpenMode::ReadWrite) {
            Err(DeviceError::InUse { .. }) if started.elapsed() < IN_USE_FOR => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(DeviceError::Open { .. }) => return DeviceFile::open(path, OpenMode::ReadOnly),
            result => return result,
        }
    }
}
