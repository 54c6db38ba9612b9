//! As much of HTTP/1.1 as an SDK sends: requests with Content-Length on connections that stay open.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest request that is read.
const MAX: usize = 1 << 20;

/// One request.
pub struct Request {
    pub method: String,
    pub path: String,
    /// Names in lowercase.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    /// The operation's name: `Decrypt`, `AssumeRole`.
    pub fn operation(&self) -> String {
        match self.headers.get("x-amz-target") {
            Some(target) => target.rsplit('.').next().unwrap_or_default().to_owned(),
            None => self.form().remove("Action").unwrap_or_default(),
        }
    }

    pub fn is_kms(&self) -> bool {
        self.headers.contains_key("x-amz-target")
    }

    /// The fields of a form-encoded body.
    pub fn form(&self) -> BTreeMap<String, String> {
        let body = String::from_utf8_lossy(&self.body);
        body.split('&')
            .filter_map(|field| field.split_once('='))
            .map(|(name, value)| (unescape(name), unescape(value)))
            .collect()
    }

    /// The access key id of the signature, or of nothing.
    pub fn access_key(&self) -> Option<String> {
        let authorization = self.headers.get("authorization")?;
        let rest = authorization.split("Credential=").nth(1)?;
        rest.split('/').next().map(str::to_owned)
    }
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
                out.push(digits.unwrap_or(b'?'));
                at += 2;
            }
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One answer.
pub struct Response {
    pub status: u16,
    pub kind: &'static str,
    /// Beside those that every answer has.
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn new(status: u16, kind: &'static str, body: Vec<u8>) -> Self {
        Response { status, kind, headers: Vec::new(), body }
    }

    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Response::new(status, "application/x-amz-json-1.1", body.to_string().into_bytes())
    }
}

/// A connection, with what was read beyond the last request.
pub struct Connection<S> {
    stream: S,
    rest: Vec<u8>,
}

static REQUESTS: AtomicU64 = AtomicU64::new(0);

impl<S: Read + Write> Connection<S> {
    pub fn new(stream: S) -> Self {
        Connection { stream, rest: Vec::new() }
    }

    fn more(&mut self) -> Option<()> {
        let mut buffer = [0; 8192];
        let read = self.stream.read(&mut buffer).ok()?;
        if read == 0 || self.rest.len() > MAX {
            return None;
        }
        self.rest.extend_from_slice(&buffer[..read]);
        Some(())
    }

    /// The next request; `None` at the end, or at what is no request.
    pub fn read(&mut self) -> Option<Request> {
        let head_len = loop {
            if let Some(at) = self.rest.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            self.more()?;
        };
        let head = String::from_utf8_lossy(&self.rest[..head_len]).into_owned();
        self.rest.drain(..head_len + 4);
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let length: usize = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if length > MAX {
            return None;
        }
        while self.rest.len() < length {
            self.more()?;
        }
        let body = self.rest.drain(..length).collect();
        Some(Request { method, path, headers, body })
    }

    pub fn write(&mut self, response: &Response) -> std::io::Result<()> {
        let id = REQUESTS.fetch_add(1, Ordering::Relaxed);
        let mut out = format!(
            "HTTP/1.1 {} Fake\r\nContent-Type: {}\r\nContent-Length: {}\r\nx-amzn-RequestId: fake-{id:08}\r\n",
            response.status,
            response.kind,
            response.body.len()
        )
        .into_bytes();
        for (name, value) in &response.headers {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&response.body);
        self.stream.write_all(&out)?;
        self.stream.flush()
    }
}
