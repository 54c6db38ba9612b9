//! A fake of Azure Key Vault, Managed HSM and the Entra token endpoint, on 127.0.0.1 only.
//!
//! One TLS port answers for `v1.vault.azure.net`, `h1.managedhsm.azure.net` and the authority, with a certificate of a
//! private authority made at start. A second, plain port plays the machine's managed identity and takes the orders of
//! the program (`POST /control`, see `control.rs`). Keys are real: RSA and AES through aws-lc-rs.

#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used)]

mod control;
mod directory;
mod http;
mod keys;
mod tls;
mod vault;
mod world;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use keys::KeyKind;
pub use world::{DirectoryFault, Fault, SECRET, World};

/// The vault's name.
pub const VAULT: &str = "v1.vault.azure.net";
/// The managed HSM's name.
pub const HSM: &str = "h1.managedhsm.azure.net";
/// The customer's tenant.
pub const TENANT: &str = "11111111-2222-3333-4444-555555555555";
/// Our application.
pub const CLIENT: &str = "99999999-8888-7777-6666-555555555555";

/// The running fake; it ends with the process.
pub struct FakeAzure {
    world: Arc<Mutex<World>>,
    secure: SocketAddr,
    plain: SocketAddr,
    ca_pem: String,
}

impl FakeAzure {
    /// Starts on free ports.
    pub fn start() -> io::Result<Self> {
        Self::start_on(0, 0)
    }

    /// Starts on these ports (0: a free one).
    pub fn start_on(secure: u16, plain: u16) -> io::Result<Self> {
        let world = Arc::new(Mutex::new(World::new()));
        let tls = tls::Tls::new(&[VAULT, HSM, "login.microsoftonline.com", "localhost"]).map_err(io::Error::other)?;
        let secure_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, secure))?;
        let plain_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, plain))?;
        let fake = FakeAzure {
            world: Arc::clone(&world),
            secure: secure_listener.local_addr()?,
            plain: plain_listener.local_addr()?,
            ca_pem: tls.ca_pem.clone(),
        };
        let config = Arc::clone(&tls.config);
        http::accept(secure_listener, Arc::clone(&world), move |stream, world| {
            let Ok(session) = rustls::ServerConnection::new(Arc::clone(&config)) else { return };
            http::serve(rustls::StreamOwned::new(session, stream), &world, route_secure);
        });
        http::accept(plain_listener, world, |stream, world| http::serve(stream, &world, route_plain));
        Ok(fake)
    }

    /// The state of the fake cloud.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where vault, HSM and authority answer; for `endpoint` and, as the authority, `azure-authority`.
    pub fn url(&self) -> String {
        format!("https://{}", self.secure)
    }

    /// Where the managed identity answers (`IDENTITY_ENDPOINT`) and control is taken.
    pub fn plain_url(&self) -> String {
        format!("http://{}", self.plain)
    }

    /// The private authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }
}

fn route_secure(request: &http::Request, world: &Mutex<World>) -> http::Reply {
    if request.path.ends_with("/oauth2/v2.0/token") {
        return directory::token(request, world);
    }
    vault::answer(request, world)
}

fn route_plain(request: &http::Request, world: &Mutex<World>) -> http::Reply {
    match request.path.as_str() {
        "/control" => control::obey(request, world),
        "/log" => control::log(world),
        _ => directory::identity(request, world),
    }
}

/// The program `fake-keys azure [--port N] [--control-port N] [--ca-file FILE]`: prints what is needed to use it, then
/// answers until it is killed.
pub fn run(words: &[String]) -> Result<(), String> {
    const USAGE: &str = "usage: fake-keys azure [--port N] [--control-port N] [--ca-file FILE]";
    let (mut port, mut control_port, mut ca_file) = (0, 0, std::env::temp_dir().join("hyokfs-fake-azure-ca.pem"));
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value; {USAGE}"))?;
        let number = || value.parse::<u16>().map_err(|_| format!("`{value}` is no port; {USAGE}"));
        match word.as_str() {
            "--port" => port = number()?,
            "--control-port" => control_port = number()?,
            "--ca-file" => ca_file = value.into(),
            _ => return Err(format!("`{word}` is unknown; {USAGE}")),
        }
    }
    let fake =
        FakeAzure::start_on(port, control_port).map_err(|error| format!("the ports can't be opened: {error}"))?;
    std::fs::write(&ca_file, fake.ca_pem()).map_err(|error| format!("{}: {error}", ca_file.display()))?;
    fake.world().create_key("hyok", KeyKind::Rsa(3072));
    fake.world().create_key("hsm", KeyKind::Aes);
    println!(
        "azurekeyvault://{VAULT}/keys/hyok azurekeyvault://{HSM}/keys/hsm endpoint={} ca-file={} azure-authority={} azure-tenant-id={TENANT} azure-client-id={CLIENT} client-secret={} control={}/control",
        fake.url(),
        ca_file.display(),
        fake.url(),
        world::SECRET,
        fake.plain_url(),
    );
    loop {
        std::thread::park();
    }
}
