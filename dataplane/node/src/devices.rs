//! Finding, checking and formatting the devices of a node.
//!
//! Rules: a device that holds anything else is never formatted without the explicit flag; a device that the map
//! knows and that is missing, damaged or of another cluster does not stop the node: it is reported as out, and the
//! rest serves on.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use quarry_clustermap::{ClusterId, ClusterMap, DeviceId};
use quarry_storage::{
    device::{DeviceError, DeviceFile, Found, OpenMode, SyncDevice},
    store::{FormatParams, Store, StoreError, read_identity},
};

use crate::{
    config::{Config, DEFAULT_DEVICE_COUNT},
    credentials::random,
};

/// How long a device may still be in use by the process before.
const IN_USE_FOR: Duration = Duration::from_secs(10);
/// Between two looks.
const IN_USE_PAUSE: Duration = Duration::from_millis(20);

/// A device that can be served.
#[derive(Clone)]
pub(crate) struct FoundDevice {
    pub(crate) id: DeviceId,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<DeviceFile>,
}

/// Why the devices cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevicesError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("cannot format {}: {source}", path.display())]
    Format { path: PathBuf, source: StoreError },
    #[error(
        "{} holds {found}; if that may be lost, add --format-devices-losing-their-data",
        path.display()
    )]
    HoldsSomethingElse { path: PathBuf, found: Found },
    #[error("{} belongs to cluster {theirs}, this node to cluster {ours}", path.display())]
    OtherCluster { path: PathBuf, theirs: ClusterId, ours: ClusterId },
    #[error("{} and {} are the same device", first.display(), second.display())]
    SameDevice { first: PathBuf, second: PathBuf },
    #[error(
        "{} belongs to cluster {theirs}, but the metastore in the data directory is lost or of another node; starting \
         with a new one would give ids out again. Put the metastore file back, or format the devices anew with \
         --format-devices-losing-their-data",
        path.display()
    )]
    MetastoreLost { path: PathBuf, theirs: ClusterId },
    #[error("cannot use {}: {source}", path.display())]
    Path { path: PathBuf, source: std::io::Error },
}

/// Where the devices are.
pub(crate) fn paths(config: &Config) -> Vec<PathBuf> {
    if !config.devices.is_empty() {
        return config.devices.clone();
    }
    let directory = config.data.join("devices");
    (0..DEFAULT_DEVICE_COUNT).map(|index| directory.join(format!("device-{index}"))).collect()
}

/// Opens every device, and formats what is new. Devices that the map knows and that cannot be used are left out.
pub(crate) fn prepare(
    config: &Config,
    map: Option<&ClusterMap>,
) -> Result<(ClusterId, Vec<FoundDevice>), DevicesError> {
    let first_start = FirstStart::read(&config.data)?;
    let cluster = map.map(|map| map.cluster).or(first_start);
    let mut found: Vec<FoundDevice> = Vec::new();
    let mut blank = Vec::new();
    for path in paths(config) {
        let known =
            map.is_some_and(|map| map.devices.values().any(|entry| Path::new(&entry.location) == path));
        match examine(&path, config.may_format && !known) {
            Ok(Examined::Ours { theirs, .. }) if cluster.is_none() => {
                if !config.may_format {
                    return Err(DevicesError::MetastoreLost { path, theirs });
                }
                blank.push((path, false));
            }
            Ok(Examined::Ours { id, theirs, file }) => {
                let ours = cluster.unwrap_or(theirs);
                if ours != theirs {
                    let error = DevicesError::OtherCluster { path, theirs, ours };
                    if known {
                        tracing::error!(event = "device_unusable", %error);
                        continue;
                    }
                    return Err(error);
                }
                if let Some(first) = found.iter().find(|other| other.id == id) {
                    return Err(DevicesError::SameDevice { first: first.path.clone(), second: path });
                }
                found.push(FoundDevice { id, path, file });
            }
            Ok(Examined::Absent | Examined::Blank) if known => {
                tracing::error!(event = "device_missing", path = %path.display(), "the map knows it; it stays out");
            }
            Ok(Examined::Absent) => blank.push((path, true)),
            Ok(Examined::Blank) => blank.push((path, false)),
            // Whoever has it open is alive, and so is the data: this is no lost device.
            Err(error @ DevicesError::Device(DeviceError::InUse { .. })) => return Err(error),
            Err(error) if known => tracing::error!(event = "device_unusable", path = %path.display(), %error),
            Err(error) => return Err(error),
        }
    }
    let cluster = match cluster {
        Some(cluster) => cluster,
        None => FirstStart::begin(&config.data)?,
    };
    for (path, create) in blank {
        found.push(format(config, cluster, path, create)?);
    }
    Ok((cluster, found))
}

/// Tells a first start that was interrupted from a lost metastore: a file that names the new cluster from before the
/// first device is formatted until the first map is committed.
pub(crate) struct FirstStart;

impl FirstStart {
    fn path(data: &Path) -> PathBuf {
        data.join("first-start")
    }

    fn read(data: &Path) -> Result<Option<ClusterId>, DevicesError> {
        let path = Self::path(data);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(bytes.try_into().ok().map(ClusterId)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DevicesError::Path { path, source }),
        }
    }

    fn begin(data: &Path) -> Result<ClusterId, DevicesError> {
        let path = Self::path(data);
        let written = random().and_then(|id: [u8; 16]| {
            let mut file = std::fs::File::create(&path)?;
            std::io::Write::write_all(&mut file, &id)?;
            file.sync_all()?;
            std::fs::File::open(data)?.sync_all()?;
            Ok(ClusterId(id))
        });
        written.map_err(|source| DevicesError::Path { path, source })
    }

    /// The first map is durable.
    pub(crate) fn end(data: &Path) -> Result<(), DevicesError> {
        let path = Self::path(data);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DevicesError::Path { path, source: error })
            }
            _ => Ok(()),
        }
    }
}

enum Examined {
    Absent,
    Blank,
    Ours { id: DeviceId, theirs: ClusterId, file: Arc<DeviceFile> },
}

fn examine(path: &Path, may_format: bool) -> Result<Examined, DevicesError> {
    if !path.exists() {
        return Ok(Examined::Absent);
    }
    match DeviceFile::probe(path)? {
        Found::Blank => Ok(Examined::Blank),
        Found::Quarry => {
            let file = Arc::new(open_when_free(path)?);
            let device = SyncDevice::new(Arc::clone(&file));
            match futures::executor::block_on(read_identity(&device)) {
                Ok(identity) => Ok(Examined::Ours { id: identity.device, theirs: identity.cluster, file }),
                Err(_) if may_format => Ok(Examined::Blank),
                Err(_) => {
                    Err(DevicesError::HoldsSomethingElse { path: path.to_owned(), found: Found::Unknown })
                }
            }
        }
        _ if may_format => Ok(Examined::Blank),
        found => Err(DevicesError::HoldsSomethingElse { path: path.to_owned(), found }),
    }
}

/// Opens a device, waiting for the last process to be gone: the kernel takes io_uring apart, and lets go of the files
/// in it, some time after a process has ended.
pub(crate) fn open_when_free(path: &Path) -> Result<DeviceFile, DeviceError> {
    let started = Instant::now();
    loop {
        match DeviceFile::open(path, OpenMode::ReadWrite) {
            Err(DeviceError::InUse { .. }) if started.elapsed() < IN_USE_FOR => {
                std::thread::sleep(IN_USE_PAUSE)
            }
            result => return result,
        }
    }
}

fn format(
    config: &Config,
    cluster: ClusterId,
    path: PathBuf,
    create: bool,
) -> Result<FoundDevice, DevicesError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| DevicesError::Path { path, source }
    };
    let file = if create {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(at(parent))?;
        }
        DeviceFile::create(&path, config.device_size_bytes)?
    } else {
        DeviceFile::open(&path, OpenMode::ReadWrite)?
    };
    let id = DeviceId(u64::from_le_bytes(random().map_err(at(&path))?));
    let device = SyncDevice::new(Arc::new(file));
    let params = FormatParams::new(cluster, id, device.file().size_bytes());
    tracing::info!(event = "device_formatted", device = %id, path = %path.display());
    futures::executor::block_on(Store::format(Rc::new(device.clone()), params))
        .map_err(|source| DevicesError::Format { path: path.clone(), source })?;
    Ok(FoundDevice { id, path, file: Arc::clone(device.file()) })
}
