//! Through the proxy that `HTTPS_PROXY` names, to AWS's own names.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use hyokfs::provider::{KeySettings, Verdict, aws};

use super::fake::{CUSTOMER, FakeAws, VENDOR};
use super::node::{self, volume};

/// A proxy that knows `CONNECT` alone, and leads every name to one address. Tells which names were asked for.
struct Proxy {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// At the address that `HTTPS_PROXY` names.
    fn start(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind(std::env::var("HTTPS_PROXY").unwrap().trim_start_matches("http://")).unwrap();
        let proxy = Proxy { asked: Arc::default() };
        let asked = Arc::clone(&proxy.asked);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let asked = Arc::clone(&asked);
                std::thread::spawn(move || serve(client, target, &asked));
            }
        });
        proxy
    }

    fn asked(&self) -> Vec<String> {
        let mut names = self.asked.lock().unwrap().clone();
        names.sort();
        names.dedup();
        names
    }
}

fn serve(mut client: TcpStream, target: SocketAddr, asked: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    let Some(name) = first.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
        let _ = client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n");
        return;
    };
    asked.lock().unwrap().push(name.to_owned());
    let mut server = TcpStream::connect(target).unwrap();
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
    let (mut back, mut from_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut reader, &mut server);
    let _ = server.shutdown(Shutdown::Both);
}

/// A node whose proxy is to be at a free port of this machine.
fn behind_a_proxy(name: &str, body: impl Future<Output = ()>) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut environment = node::vendor();
    environment.push(("HTTPS_PROXY", format!("http://{free}")));
    node::run(&format!("{}::{name}", module_path!()), environment, body);
}

/// A key, a role that may use it, and settings that lead to them by AWS's own names.
fn cloud(ca: &std::path::Path) -> (FakeAws, String, KeySettings) {
    let names = ["kms.eu-central-1.amazonaws.com", "sts.eu-central-1.amazonaws.com", "127.0.0.1"];
    let (fake, certificate) = FakeAws::start_tls_as(&names);
    std::fs::write(ca, certificate).unwrap();
    let role = format!("arn:aws:iam::{CUSTOMER}:role/hyokfs");
    let arn = fake.world().create_key();
    fake.world().create_role(&role, &format!("arn:aws:iam::{VENDOR}:root"), None, &[&arn]);
    let settings = KeySettings {
        ca_file: Some(ca.to_owned()),
        assume_role: vec![role],
        call_deadline_ms: 20_000,
        ..KeySettings::default()
    };
    (fake, arn, settings)
}

#[test]
fn kms_and_sts_are_reached_through_the_proxy_and_given_endpoints_around_it() {
    behind_a_proxy("kms_and_sts_are_reached_through_the_proxy_and_given_endpoints_around_it", async {
        let ca = tempfile::NamedTempFile::new().unwrap();
        let (fake, arn, settings) = cloud(ca.path());
        let proxy = Proxy::start(fake.address());
        let key = aws::connect(&arn, &settings).await.unwrap();
        let (secret, canary) = key.generate(&volume()).await.unwrap();
        assert_eq!(key.unwrap(&volume(), &canary.blob).await.unwrap().0.expose(), secret.expose());
        key.probe(&volume(), &canary.blob).await.unwrap();
        assert_eq!(proxy.asked(), ["kms.eu-central-1.amazonaws.com:443", "sts.eu-central-1.amazonaws.com:443"]);

        // An endpoint that was given by hand lies in one's own network: the proxy is not asked for it.
        proxy.asked.lock().unwrap().clear();
        let near = KeySettings { endpoint: Some(fake.url()), sts_endpoint: Some(fake.url()), ..settings };
        aws::connect(&arn, &near).await.unwrap().probe(&volume(), &canary.blob).await.unwrap();
        assert_eq!(proxy.asked(), Vec::<String>::new());
    });
}

#[test]
fn a_proxy_that_is_not_there_says_nothing_about_the_customers_will() {
    behind_a_proxy("a_proxy_that_is_not_there_says_nothing_about_the_customers_will", async {
        let ca = tempfile::NamedTempFile::new().unwrap();
        let (_fake, arn, settings) = cloud(ca.path());
        let lost = KeySettings { call_deadline_ms: 2000, worked_before: true, ..settings };
        let error = aws::connect(&arn, &lost).await.unwrap().probe(&volume(), b"canary").await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Unreachable, "{error}");
    });
}
