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

use quarry_clustermap::{ClusterId, ClusterMap, DeviceEntry, DeviceId};
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
    /// The lost device whose place it takes.
    pub(crate) replaces: Option<DeviceId>,
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
    #[error("--replace-device {}: the map has no device there", path.display())]
    NothingToReplace { path: PathBuf },
    #[error("--replace-device {}: the device is there and whole; take it away first", path.display())]
    NotLost { path: PathBuf },
    #[error("cannot use {}: {source}", path.display())]
    Path { path: PathBuf, source: std::io::Error },
}

/// Where the devices are.
pub(crate) fn paths(config: &Config) -> Vec<PathBuf> {
    let hot = if config.devices.is_empty() {
        let directory = config.data.join("devices");
        (0..DEFAULT_DEVICE_COUNT).map(|index| directory.join(format!("device-{index}"))).collect()
    } else {
        config.devices.clone()
    };
    hot.into_iter().chain(config.cold_devices.iter().cloned()).collect()
}

/// Opens every device, and formats what is new. Devices that the map knows and that cannot be used are left out. `map` is
/// what is known of this node's devices; `cluster` is given if the node knows without a map where it belongs.
pub(crate) fn prepare(
    config: &Config,
    map: Option<&ClusterMap>,
    cluster: Option<ClusterId>,
) -> Result<(ClusterId, Vec<FoundDevice>), DevicesError> {
    let first_start = match cluster {
        Some(cluster) => Some(cluster),
        None => FirstStart::read(&config.data)?,
    };
    let mut search = Search {
        config,
        map,
        cluster: map.map(|map| map.cluster).or(first_start),
        found: Vec::new(),
        blank: Vec::new(),
    };
    if let Some(path) = config.replace.iter().find(|path| search.known_at(path).is_none()) {
        return Err(DevicesError::NothingToReplace { path: path.clone() });
    }
    for path in paths(config) {
        search.look_at(path)?;
    }
    let cluster = match search.cluster {
        Some(cluster) => cluster,
        None => FirstStart::begin(&config.data)?,
    };
    for Blank { path, create, replaces } in search.blank {
        let new = format(config, cluster, path, create)?;
        search.found.push(FoundDevice { replaces, ..new });
    }
    Ok((cluster, search.found))
}

struct Search<'s> {
    config: &'s Config,
    map: Option<&'s ClusterMap>,
    cluster: Option<ClusterId>,
    found: Vec<FoundDevice>,
    blank: Vec<Blank>,
}

/// What is to be formatted.
struct Blank {
    path: PathBuf,
    create: bool,
    replaces: Option<DeviceId>,
}

impl Search<'_> {
    /// The device that the map has at a path.
    fn known_at(&self, path: &Path) -> Option<DeviceId> {
        let here = |entry: &DeviceEntry| !entry.replaced && Path::new(&entry.location) == path;
        self.map?.devices.iter().filter(|(_, entry)| here(entry)).map(|(id, _)| *id).next_back()
    }

    fn look_at(&mut self, path: PathBuf) -> Result<(), DevicesError> {
        let here = self.known_at(&path);
        let replaces = here.filter(|_| self.config.replace.contains(&path));
        // What the map knows may be lost, and does not stop the others.
        let known = here.is_some() && replaces.is_none();
        match examine(&path, self.config.may_format && !known) {
            Ok(Examined::Ours { theirs, .. }) if self.cluster.is_none() => {
                if !self.config.may_format {
                    return Err(DevicesError::MetastoreLost { path, theirs });
                }
                self.blank.push(Blank { path, create: false, replaces });
            }
            Ok(Examined::Ours { id, theirs, file }) => {
                return self.ours(path, (id, theirs), file, (known, replaces));
            }
            Ok(Examined::Absent | Examined::Blank) if known => {
                tracing::error!(
                    event = "device_missing",
                    path = %path.display(),
                    "the map knows it; it stays out, unless --replace-device puts a new one there"
                );
            }
            Ok(Examined::Absent) => self.blank.push(Blank { path, create: true, replaces }),
            Ok(Examined::Blank) => self.blank.push(Blank { path, create: false, replaces }),
            // Whoever has it open is alive, and so is the data: this is no lost device.
            Err(error @ DevicesError::Device(DeviceError::InUse { .. })) => return Err(error),
            Err(error) if known => tracing::error!(event = "device_unusable", path = %path.display(), %error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn ours(
        &mut self,
        path: PathBuf,
        (id, theirs): (DeviceId, ClusterId),
        file: Arc<DeviceFile>,
        (known, replaces): (bool, Option<DeviceId>),
    ) -> Result<(), DevicesError> {
        let ours = self.cluster.unwrap_or(theirs);
        if ours != theirs {
            let error = DevicesError::OtherCluster { path, theirs, ours };
            if !known {
                return Err(error);
            }
            tracing::error!(event = "device_unusable", %error);
            return Ok(());
        }
        if let Some(first) = self.found.iter().find(|other| other.id == id) {
            return Err(DevicesError::SameDevice { first: first.path.clone(), second: path });
        }
        // One that was formatted for the replacement before a crash is in no map yet.
        if replaces.is_some() && self.map.is_some_and(|map| map.devices.contains_key(&id)) {
            return Err(DevicesError::NotLost { path });
        }
        self.found.push(FoundDevice { id, path, file, replaces });
        Ok(())
    }
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
    Ok(FoundDevice { id, path, file: Arc::clone(device.file()), replaces: None })
}
