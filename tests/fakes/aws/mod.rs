//! A fake AWS: KMS (JSON 1.1) and STS (query protocol) on one port of 127.0.0.1, with real envelope encryption, real
//! policy documents and a switch for every way the real ones fail. Deterministic; one thread per connection.
//!
//! Speaks as much of the protocols as the SDK, `aws` and hyokfs use. What it checks: access key and session, trust policy,
//! role policy, key policy (Effect, Principal, Action, Resource, the conditions of [`policy`]), key state, encryption
//! context (as AAD), blob integrity. What it does not check: signatures.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod admin;
pub mod http;
pub mod kms;
pub mod metadata;
pub mod policy;
pub mod sts;
pub mod world;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
pub use world::{What, World};

/// The vendor's account: its access key id is the account's root, as every 12-digit access key id is.
pub const VENDOR: &str = "111111111111";
/// The customer's account.
pub const CUSTOMER: &str = "222222222222";
/// The region of every key.
pub const REGION: &str = "eu-central-1";

/// A running fake. Stops answering when dropped.
pub struct FakeAws {
    address: SocketAddr,
    shared: Arc<Shared>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

struct Shared {
    world: Mutex<World>,
    stopped: AtomicBool,
}

impl FakeAws {
    /// On any free port.
    pub fn start() -> Self {
        Self::start_on(0, None).expect("a free port of 127.0.0.1")
    }

    /// On any free port, with TLS; gives the certificate to trust, as PEM.
    pub fn start_tls() -> (Self, String) {
        Self::start_tls_as(&["localhost", "127.0.0.1"])
    }

    /// On any free port, with TLS under these names; gives the certificate to trust, as PEM.
    pub fn start_tls_as(names: &[&str]) -> (Self, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        (Self::start_on(0, Some(Arc::new(config))).unwrap(), made.cert.pem())
    }

    /// On `port` of 127.0.0.1 (0: any).
    pub fn start_on(port: u16, tls: Option<Arc<rustls::ServerConfig>>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { world: Mutex::new(World::default()), stopped: AtomicBool::new(false) });
        let fake = FakeAws { address, shared: Arc::clone(&shared), tls: tls.clone() };
        std::thread::Builder::new().name("fake-aws".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                std::thread::spawn(move || connection(&shared, stream, tls));
            }
        })?;
        Ok(fake)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address to configure as endpoint.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.address.port())
    }

    /// Everything the fake knows, to look at and to change.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FakeAws {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener, so that its port is free again.
        let _ = TcpStream::connect(self.address);
    }
}

fn connection(shared: &Shared, stream: TcpStream, tls: Option<Arc<rustls::ServerConfig>>) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(120)));
    match tls {
        None => serve(shared, stream),
        Some(config) => {
            if let Ok(session) = rustls::ServerConnection::new(config) {
                serve(shared, rustls::StreamOwned::new(session, stream));
            }
        }
    }
}

fn serve<S: std::io::Read + std::io::Write>(shared: &Shared, stream: S) {
    let mut stream = http::Connection::new(stream);
    while let Some(request) = stream.read() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        match answer(shared, &request) {
            Outcome::Answer(response) => {
                if stream.write(&response).is_err() {
                    return;
                }
            }
            Outcome::Close => return,
        }
    }
}

enum Outcome {
    Answer(Response),
    Close,
}

fn answer(shared: &Shared, request: &Request) -> Outcome {
    let world = || shared.world.lock().unwrap_or_else(PoisonError::into_inner);
    if request.path.starts_with("/_fake/") {
        return Outcome::Answer(admin::answer(&mut world(), request));
    }
    if metadata::is_for_node(request) {
        return Outcome::Answer(metadata::answer(&mut world(), request));
    }
    let operation = request.operation();
    let fault = world().take_fault(&operation);
    let mut late = Duration::ZERO;
    match fault {
        None => {}
        Some(What::Late(time)) => late = time,
        Some(What::Delay(time)) => std::thread::sleep(time),
        Some(What::Hang(time)) => {
            world().log.push(world::Logged::failed(&operation, "hang"));
            std::thread::sleep(time);
            return Outcome::Close;
        }
        Some(What::Close) => {
            world().log.push(world::Logged::failed(&operation, "close"));
            return Outcome::Close;
        }
        Some(What::Garbage) => {
            world().log.push(world::Logged::failed(&operation, "garbage"));
            return Outcome::Answer(Response::new(200, "text/html", b"<html>captive portal</html>".to_vec()));
        }
        Some(What::Error { status, code, message }) => {
            world().log.push(world::Logged::failed(&operation, &code));
            return Outcome::Answer(if request.is_kms() {
                kms::error(status, &code, &message)
            } else {
                sts::error(status, &code, &message)
            });
        }
    }
    let answer = {
        let mut world = world();
        if request.is_kms() { kms::answer(&mut world, request) } else { sts::answer(&mut world, request) }
    };
    std::thread::sleep(late);
    Outcome::Answer(answer)
}
