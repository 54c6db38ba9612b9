//! Answers of Azure, or of anything between it and us: two bytes of status, then the body. An answer without Key Vault's
//! error body is never the customer's no, and no answer writes to the operator's terminal what is not a text.
#![no_main]

use azure_core::Error;
use azure_core::error::ErrorKind;
use azure_core::http::headers::Headers;
use azure_core::http::{RawResponse, StatusCode};
use hyokfs::provider::Verdict;
use hyokfs::provider::azure::verdict::{Asked, Operation, judge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((status, body)) = bytes.split_first_chunk::<2>() else { return };
    let number = u16::from_be_bytes(*status) % 1000;
    let status = StatusCode::from(number);
    let mut headers = Headers::new();
    if let Some(line) = body.split(|byte| *byte == b'\n').nth(1) {
        // What is no text never comes out of the HTTP library.
        let text: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect();
        headers.insert("x-ms-request-id", text.clone());
        headers.insert("retry-after", text);
    }
    let raw = RawResponse::from_bytes(status, headers, body.to_vec());
    let kind = ErrorKind::HttpResponse { status, error_code: None, raw_response: Some(Box::new(raw)) };
    let code = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|body| body["error"]["code"].as_str().map(str::to_owned));
    for (operation, worked_before) in [(Operation::Unwrap, true), (Operation::Wrap, false)] {
        let asked = Asked { key: "azurekeyvault://h/keys/k", operation, worked_before };
        let answer = judge(&Error::with_message(kind.clone(), "text"), &asked);
        assert_ne!(answer.error.verdict, Verdict::Live);
        assert!(code.is_some() || answer.error.verdict != Verdict::Denied, "{:?}", answer.error);
        assert!(!answer.error.to_string().chars().any(char::is_control), "{:?}", answer.error);
    }
});
