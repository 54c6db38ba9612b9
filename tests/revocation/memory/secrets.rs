//! What a volume's daemon knows, computed from the store and the customer's keystore with the library.

use std::collections::HashSet;
use std::fs;

use hyokfs::crypto::Secret;
use hyokfs::crypto::suite::Suite;
use hyokfs::format::header::FileHeader;
use hyokfs::format::page::{FORMAT_VERSION, Geometry, PAGE};
use hyokfs::format::volume::{Volume, VolumeRecord};
use hyokfs::provider::local::LocalKey;
use hyokfs::provider::{Context, KeySettings, Provider};

use super::needles::{Needles, expand, extract};
use crate::common::Store;

/// An opened volume and what is known of its files.
pub struct Secrets {
    volume: Volume,
    /// Suite, PRK of the page keys, and the path.
    files: Vec<(Suite, [u8; 32], std::path::PathBuf)>,
    /// Everything that must not be found.
    pub needles: Needles,
    epochs: HashSet<([u8; 32], u64)>,
}

impl Secrets {
    /// Unwraps everything that is in the store now; the key must be enabled.
    pub fn of(store: &Store) -> Secrets {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let customer = LocalKey::new(Some(&store.keystore), None, &KeySettings::default());
        let text = fs::read_to_string(store.path.join("hyokfs.toml")).unwrap();
        let record = VolumeRecord::parse(&text).unwrap();
        let id = record.volume;
        let unwrap = |file, blob: &[u8]| -> Secret {
            let context = Context { volume: id, file, tenant: None };
            runtime.block_on(customer.unwrap(&context, blob)).unwrap().0
        };
        let secret = unwrap(None, &record.key[0].secret);
        let mut needles = Needles::default();
        needles.key("volume secret", secret.expose());
        // As docs/format.md has it: HKDF with the volume's id as salt.
        let derived = |label: &str| {
            let prk = extract(id.as_bytes(), secret.expose());
            expand(&prk, &[b"hyokfs/1 ", label.as_bytes()])
        };
        needles.key("mixing key", &derived("mixing"));
        needles.key("small key", &derived("small"));
        needles.key("name key", &derived("name encryption"));
        needles.schedule(&derived("name encryption"));
        for label in ["header", "volume record", "name authentication"] {
            needles.key("MAC key", &derived(label));
            needles.hmac(&derived(label));
        }
        let volume = record.authenticate(&secret).unwrap();
        assert_eq!(volume.keys.mixing.expose(), &derived("mixing"), "the derivation is another one now");
        let mut secrets = Secrets { volume, files: Vec::new(), needles, epochs: HashSet::new() };
        for path in store.ciphertexts() {
            let bytes = fs::read(&path).unwrap();
            let length = usize::from(secrets.volume.record.header_len);
            let header = FileHeader::decode(&bytes[..length], &secrets.volume.keys.header, id).unwrap();
            let key = unwrap(Some(header.file), &header.slots[0].wrapped);
            let mut ikm = key.expose().to_vec();
            ikm.extend_from_slice(secrets.volume.keys.mixing.expose());
            let prk = extract(header.file.as_bytes(), &ikm);
            secrets.needles.key("file key", key.expose());
            secrets.needles.key("page keys' root", &prk);
            secrets.files.push((header.suite, prk, path));
        }
        secrets.page_keys();
        secrets
    }

    /// Learns the page keys of every epoch that stands in the store now. Needs no customer.
    pub fn page_keys(&mut self) {
        let geometry = Geometry::new(usize::from(self.volume.record.header_len)).unwrap();
        for (suite, prk, path) in &self.files {
            let bytes = fs::read(path).unwrap_or_default();
            for (index, page) in bytes.chunks_exact(PAGE).enumerate() {
                let at = geometry.seal_at(index as u64);
                let epoch = u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
                if epoch == 0 || !self.epochs.insert((*prk, epoch)) {
                    continue;
                }
                let id = self.volume.record.volume;
                let info: [&[u8]; 5] =
                    [b"hyokfs page key", &[FORMAT_VERSION], id.as_bytes(), &[suite.code()], &epoch.to_le_bytes()];
                let key = expand(prk, &info);
                self.needles.key("page key", &key);
                if *suite == Suite::Aes256Gcm {
                    self.needles.schedule(&key);
                }
            }
        }
    }

    /// Whether pages are sealed with AES.
    pub fn aes(&self) -> bool {
        self.volume.record.suite == Suite::Aes256Gcm
    }

    /// How many epochs of pages are known.
    pub fn epochs(&self) -> usize {
        self.epochs.len()
    }
}
