//! A fake cloud and the settings that lead to it.

use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use hyokfs::format::{FileId, VolumeId};
use hyokfs::provider::{Context, KeySettings, Provider, ProviderError, azure};

use crate::fake::{CLIENT, FakeAzure, KeyKind, TENANT, VAULT};

pub struct Rig {
    pub fake: FakeAzure,
    pub settings: KeySettings,
    pub dir: tempfile::TempDir,
}

impl Rig {
    /// A vault with the key `hyok`, reached with a client secret.
    pub fn new(kind: KeyKind) -> Self {
        let fake = FakeAzure::start().unwrap();
        fake.world().create_key("hyok", kind);
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, fake.ca_pem()).unwrap();
        let secret = fake.world().secret.clone();
        let settings = KeySettings {
            endpoint: Some(fake.url()),
            ca_file: Some(ca_file),
            azure_authority: Some(fake.url()),
            azure_tenant_id: Some(TENANT.to_owned()),
            azure_client_id: Some(CLIENT.to_owned()),
            azure_credential: Some("client-secret".to_owned()),
            azure_client_secret_file: Some(private_file(&dir, "secret", &format!("{secret}\n"))),
            call_deadline_ms: 5_000,
            ..KeySettings::default()
        };
        Rig { fake, settings, dir }
    }

    pub async fn key(&self) -> Arc<dyn Provider> {
        self.connect(VAULT, &self.settings).await.unwrap()
    }

    pub async fn connect(&self, host: &str, settings: &KeySettings) -> Result<Arc<dyn Provider>, ProviderError> {
        azure::connect(host, "hyok", None, settings).await
    }
}

/// A file that only we can read.
pub fn private_file(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    use std::io::Write;
    let path = dir.path().join(name);
    let mut file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    path
}

pub fn file(byte: u8) -> Context<'static> {
    Context { volume: VolumeId([0xab; 16]), file: Some(FileId([byte; 16])), tenant: Some("acme") }
}

pub fn volume() -> Context<'static> {
    Context { volume: VolumeId([0xab; 16]), file: None, tenant: Some("acme") }
}
