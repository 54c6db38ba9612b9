#![allow(clippy::unwrap_used)]
//! What needs no service; the rows themselves are tested through the SDK in `tests/azure`.

use super::*;
use azure_core::http::StatusCode;
use azure_core::http::headers::Headers;

const ASKED: Asked<'static> =
    Asked { key: "azurekeyvault://h/keys/k", operation: Operation::Unwrap, worked_before: true };

fn answered(status: u16, body: &str) -> Error {
    let status = StatusCode::from(status);
    let raw = RawResponse::from_bytes(status, Headers::new(), body.to_owned());
    let kind = ErrorKind::HttpResponse { status, error_code: None, raw_response: Some(Box::new(raw)) };
    Error::with_message(kind, "text")
}

#[test]
fn numbers_are_read_from_texts_and_odd_ones_passed_over() {
    assert_eq!(numbers_after("AADSTS700016: x AADSTS: AADSTS99999999999999 AADSTS1.", "AADSTS"), [700_016, 1]);
    assert_eq!(numbers_after("é AKV10032é", "AKV"), [10_032]);
}

#[test]
fn a_quote_is_one_short_line() {
    assert_eq!(quote("one\ntwo"), "one");
    assert_eq!(quote(&"é".repeat(400)).chars().count(), QUOTE + 1);
}

#[test]
fn a_text_that_names_a_code_decides_nothing() {
    let error =
        answered(403, r#"{"error":{"code":"Forbidden","message":"KeyDisabled ForbiddenByFirewall AADSTS7000112"}}"#);
    let answer = judge(&error, &ASKED);
    assert_eq!((answer.error.verdict, answer.error.code.as_str()), (Verdict::Denied, "Forbidden"));
    let never = judge(&error, &Asked { worked_before: false, ..ASKED });
    assert_eq!(never.error.verdict, Verdict::Misconfigured);
}

#[test]
fn bodies_of_any_shape_are_borne() {
    for status in [100, 200, 301, 400, 401, 403, 404, 405, 409, 410, 418, 429, 500, 599, 999] {
        for body in ["", "null", "[]", "{", r#"{"error":null}"#, r#"{"error":{"code":7,"innererror":[]}}"#, "\u{fffd}"]
        {
            let answer = judge(&answered(status, body), &ASKED);
            assert!(matches!(answer.error.verdict, Verdict::Unreachable), "{status} {body}: {:?}", answer.error);
            assert!(answer.error.message.contains(ASKED.key));
        }
    }
}

/// Found by fuzzing: an inner code alone was taken for the vault's word.
#[test]
fn an_inner_code_without_the_outer_one_is_not_the_vaults_word() {
    for (status, code) in [(403, "KeyDisabled"), (403, "ForbiddenByPolicy"), (409, "ObjectIsDeletedButRecoverable")] {
        let inner = format!(r#""innererror":{{"code":"{code}"}}"#);
        let alone = judge(&answered(status, &format!(r#"{{"error":{{{inner}}}}}"#)), &ASKED);
        assert_eq!(alone.error.verdict, Verdict::Unreachable, "{status} {code}");
        let whole = judge(&answered(status, &format!(r#"{{"error":{{"code":"Forbidden",{inner}}}}}"#)), &ASKED);
        assert_eq!(whole.error.verdict, Verdict::Denied, "{status} {code}");
    }
}

#[test]
fn a_token_failure_inside_wrappings_keeps_its_number() {
    let inner = Error::with_message(ErrorKind::Other, "AADSTS7000112: disabled");
    let token = Error::with_error(ErrorKind::Credential, inner, "ClientSecretCredential authentication failed.");
    let outer = token.with_context("non-transport error occurred which will not be retried");
    let answer = judge(&outer, &ASKED);
    assert_eq!((answer.error.verdict, answer.error.code.as_str()), (Verdict::Denied, "AADSTS7000112"));
}
