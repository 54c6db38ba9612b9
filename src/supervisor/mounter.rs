//! From a store and a live key to a mount that answers; used at the start and after every lock.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::caches::{self, Known};
use super::events::Happened;
use super::lock::Mounted;
use super::observe::Watch;
use super::pin;
use super::run::RunOptions;
use super::volume::{self, Unlocked, VolumeError};
use crate::format::VolumeId;
use crate::format::volume::{Granularity, VolumeRecord};
use crate::fs::{Fs, FsOptions};
use crate::fuse::{Device, MountOptions, Session};
use crate::keyring::{Keyring, KeyringOptions, Limits};
use crate::provider::{KeySettings, KeyUri};
use crate::store::Store;
use crate::sys::{stack, step};

/// How long emptying the caches may take before a held volume is opened again.
const PURGE: Duration = Duration::from_secs(2);

/// What is known of a volume once it was unlocked.
pub struct Identity {
    /// Its id.
    pub volume: VolumeId,
    /// Its fingerprint.
    pub fingerprint: String,
    /// The customer's key.
    pub uri: KeyUri,
    /// The customer's name.
    pub tenant: Option<String>,
    /// The wrapped canary.
    pub canary: Vec<u8>,
}

/// Mounts one volume, again and again.
pub struct Mounter {
    store: Arc<Store>,
    settings: KeySettings,
    mountpoint: PathBuf,
    kernel: MountOptions,
    fingerprint: Option<String>,
    state_dir: PathBuf,
    keyring: KeyringOptions,
    max_rps: Option<u32>,
    runtime: tokio::runtime::Handle,
    watch: Arc<Watch>,
    events: Sender<Happened>,
    mounts: AtomicU64,
}

impl Mounter {
    /// Takes what every mount of this daemon has in common.
    pub fn new(
        store: Arc<Store>,
        settings: KeySettings,
        options: &RunOptions,
        runtime: tokio::runtime::Handle,
        watch: Arc<Watch>,
        events: Sender<Happened>,
    ) -> Mounter {
        let keyring = KeyringOptions {
            tenant: settings.tenant.clone(),
            cache: options.key_cache,
            pool: options.key_pool,
            reserve: options.key_reserve,
            deadline: options.key_wait,
            ..KeyringOptions::default()
        };
        Mounter {
            settings,
            mountpoint: options.mountpoint.clone(),
            kernel: MountOptions { source: store.path().to_owned(), ..options.kernel.clone() },
            store,
            fingerprint: options.fingerprint.clone(),
            state_dir: options.state_dir.clone(),
            keyring,
            max_rps: options.max_rps,
            runtime,
            watch,
            events,
            mounts: AtomicU64::new(0),
        }
    }

    /// How the key is reached: from the first mount on, it has worked before.
    pub fn settings(&self) -> KeySettings {
        let worked_before = self.settings.worked_before || self.mounts.load(Ordering::SeqCst) > 0;
        KeySettings { worked_before, ..self.settings.clone() }
    }

    /// Unlocks and mounts for the first time; gives the time of the unwrap with it.
    pub fn mount(&self, record: VolumeRecord) -> Result<(Box<Mounted>, Identity, Duration), VolumeError> {
        let mounted = self.mount_first(record);
        stack::scrub();
        mounted
    }

    fn mount_first(&self, record: VolumeRecord) -> Result<(Box<Mounted>, Identity, Duration), VolumeError> {
        let unlocked = self.unlock(record)?;
        let key = &unlocked.volume.record.key[0];
        let identity = Identity {
            volume: unlocked.volume.record.volume,
            fingerprint: unlocked.volume.keys.fingerprint().to_owned(),
            uri: key.uri.parse()?,
            tenant: unlocked.volume.record.tenant.clone(),
            canary: unlocked.canary.clone(),
        };
        let asked = unlocked.asked;
        Ok((Box::new(self.attach(unlocked)?), identity, asked))
    }

    /// Unlocks and mounts after a lock. Everything is read anew: nothing of the time before is believed.
    pub fn mount_again(&self) -> Result<Box<Mounted>, VolumeError> {
        let mounted = self.mount_anew();
        stack::scrub();
        mounted
    }

    fn mount_anew(&self) -> Result<Box<Mounted>, VolumeError> {
        Ok(Box::new(self.attach(self.unlock(self.record_again()?)?)?))
    }

    /// The record as it stands now; it must still be this volume's.
    fn record_again(&self) -> Result<VolumeRecord, VolumeError> {
        let record = volume::read_record(&self.store)?;
        if record.volume != self.watch.volume {
            return Err(VolumeError::Option(format!(
                "{} now holds another volume ({}); unmount, and mount that one by itself",
                self.store.path().display(),
                record.volume
            )));
        }
        Ok(record)
    }

    /// Opens a volume again that was locked in place, under the same mount and the same open files.
    ///
    /// # Errors
    /// Then no key is in memory, and the volume stays held.
    pub fn reopen(&self, held: &Mounted) -> Result<(), VolumeError> {
        let done = self.reopen_held(held);
        if done.is_err() {
            held.keyring.lock();
        }
        stack::scrub();
        done
    }

    fn reopen_held(&self, held: &Mounted) -> Result<(), VolumeError> {
        let Unlocked { volume, provider, slot, group, .. } = self.unlock(self.record_again()?)?;
        if slot != held.slot {
            return Err(VolumeError::Option(
                "the volume is now under another key than the one it was mounted with; unmount it and mount it again"
                    .into(),
            ));
        }
        held.keyring.unlock(provider);
        step::reached("restore: keys");
        if let (Some(group), Granularity::Volume) = (group, volume.record.granularity) {
            held.keyring.set_group(volume.record.volume.0, group)?;
        }
        // Nothing should be there: it was purged, and nothing was answered since. Whatever is, must not be believed.
        if !caches::empty(held.session.purge(), &Known::of(&held.fs), PURGE) {
            tracing::warn!("a request still hangs in the store; its file is answered when it ends");
        }
        step::reached("restore: emptied");
        held.fs.reopen(volume)?;
        step::reached("restore: opened");
        Ok(())
    }

    fn unlock(&self, record: VolumeRecord) -> Result<Unlocked, VolumeError> {
        let unlocked = self.runtime.block_on(volume::unlock(record, &self.settings(), self.watch.clone()))?;
        let record = &unlocked.volume.record;
        pin::check(
            &self.state_dir,
            record.volume,
            unlocked.volume.keys.fingerprint(),
            record.generation,
            self.fingerprint.as_deref(),
        )?;
        Ok(unlocked)
    }

    fn attach(&self, unlocked: Unlocked) -> Result<Mounted, VolumeError> {
        let Unlocked { volume, provider, slot, group, .. } = unlocked;
        let id = volume.record.volume;
        let granularity = volume.record.granularity;
        let group_id = (granularity == Granularity::Volume).then_some(id.0);
        let wrapped = volume.record.key.first().map_or(0, |key| key.secret.len());
        let options = KeyringOptions {
            slot,
            limits: Limits::of(provider.uri(), wrapped, self.max_rps),
            new_in_group: group_id,
            per_directory: granularity == Granularity::Directory,
            ..self.keyring.clone()
        };
        let fs_options = FsOptions { remote: provider.is_remote(), ..FsOptions::default() };
        let keyring = Keyring::new(provider, self.runtime.clone(), id, options, self.watch.clone());
        if let (Some(group), Some(group_id)) = (group, group_id) {
            keyring.set_group(group_id, group)?;
        }
        step::reached("restore: unlocked");
        let fs = Fs::mount(self.store.clone(), volume, keyring.clone(), fs_options)?;
        let device = Device::mount(&self.mountpoint, &self.kernel)?;
        step::reached("restore: attached");
        let number = self.mounts.fetch_add(1, Ordering::SeqCst) + 1;
        let events = self.events.clone();
        let session = Session::start(device, fs.clone(), move || {
            let _ = events.send(Happened::SessionEnded(number));
        })
        .inspect_err(|_| {
            let root = rustix::process::geteuid().is_root();
            let _ = crate::fuse::mount::detach(&self.mountpoint, root);
        })
        .map_err(VolumeError::Session)?;
        step::reached("restore: serving");
        Ok(Mounted { fs, keyring, session, number, slot })
    }
}
