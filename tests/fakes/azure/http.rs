//! As much of HTTP/1.1 as the SDK speaks: one thread per connection, bodies with a length, kept alive.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::world::World;

const LONGEST_HEAD: usize = 64 * 1024;
const LONGEST_BODY: usize = 1024 * 1024;

pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The host that is asked, without port.
    pub fn host(&self) -> &str {
        let host = self.header("host").unwrap_or_default();
        host.split(':').next().unwrap_or(host)
    }
}

pub enum Reply {
    Full {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
    },
    /// Bytes that are no HTTP.
    Garbage,
    /// Nothing for so long, then the connection ends.
    Silence(Duration),
    /// The connection ends at once.
    Drop,
}

impl Reply {
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        let headers = vec![("content-type", "application/json; charset=utf-8".to_owned())];
        Reply::Full { status, headers, body: body.to_string().into_bytes() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Reply::Full { headers, .. } = &mut self {
            headers.push((name, value.into()));
        }
        self
    }

    pub fn status(&self) -> u16 {
        match self {
            Reply::Full { status, .. } => *status,
            _ => 0,
        }
    }
}

pub fn accept(
    listener: TcpListener,
    world: Arc<Mutex<World>>,
    handle: impl Fn(TcpStream, Arc<Mutex<World>>) + Send + Sync + 'static,
) {
    let handle = Arc::new(handle);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (handle, world) = (Arc::clone(&handle), Arc::clone(&world));
            let _ = stream.set_nodelay(true);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(120)));
            std::thread::spawn(move || handle(stream, world));
        }
    });
}

pub fn serve(mut stream: impl Read + Write, world: &Mutex<World>, route: fn(&Request, &Mutex<World>) -> Reply) {
    let mut buffer = Vec::new();
    while let Ok(Some(request)) = read(&mut stream, &mut buffer) {
        let written = match route(&request, world) {
            Reply::Full { status, headers, body } => write(&mut stream, status, &headers, &body),
            Reply::Garbage => stream.write_all(b"\x16\x03 this is no HTTP\r\n\r\n").and_then(|()| stream.flush()),
            Reply::Silence(time) => {
                std::thread::sleep(time);
                return;
            }
            Reply::Drop => return,
        };
        if written.is_err() {
            return;
        }
    }
}

fn read(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let mut chunk = [0; 8192];
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if buffer.len() > LONGEST_HEAD {
            return Err(io::Error::other("head too long"));
        }
        let got = stream.read(&mut chunk)?;
        if got == 0 {
            return Ok(None);
        }
        buffer.extend_from_slice(&chunk[..got]);
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (first.next(), first.next()) else {
        return Err(io::Error::other("no request line"));
    };
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let length: usize = length.unwrap_or(0);
    if length > LONGEST_BODY {
        return Err(io::Error::other("body too long"));
    }
    let whole = head_end + 4 + length;
    while buffer.len() < whole {
        let got = stream.read(&mut chunk)?;
        if got == 0 {
            return Ok(None);
        }
        buffer.extend_from_slice(&chunk[..got]);
    }
    let body = buffer[head_end + 4..whole].to_vec();
    buffer.drain(..whole);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Some(Request { method: method.to_owned(), path: path.to_owned(), query: query.to_owned(), headers, body }))
}

fn write(stream: &mut impl Write, status: u16, headers: &[(&str, String)], body: &[u8]) -> io::Result<()> {
    let mut out = format!("HTTP/1.1 {status} Fake\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    let mut out = out.into_bytes();
    out.extend_from_slice(body);
    stream.write_all(&out)?;
    stream.flush()
}
