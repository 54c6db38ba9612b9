//! Every row from the service's answer to the verdict, once for a key that worked before and once for one that never did.

use std::time::{Duration, Instant};

use hyokfs::provider::Verdict::{Denied, Misconfigured, Unreachable};
use hyokfs::provider::{KeySettings, ProviderError, Verdict};

use crate::fake::{DirectoryFault, Fault, KeyKind, VAULT, World};
use crate::rig::{Rig, file, volume};

type Row = (&'static str, fn(&mut World), Verdict, Verdict, &'static str);

fn forbidden(world: &mut World, code: &str) {
    world.fail(Fault::Forbidden(code.to_owned()));
}

fn directory(world: &mut World, code: u32) {
    world.directory = Some(DirectoryFault::Code(code, 400));
}

/// What happened; how; the verdict if the key worked before; if it never did; the code.
const ROWS: &[Row] = &[
    ("key disabled", |w| w.enable("hyok", false), Denied, Denied, "KeyDisabled"),
    ("key soft-deleted", |w| w.delete("hyok", true), Denied, Misconfigured, "KeyNotFound"),
    ("key purged", |w| w.purge("hyok"), Denied, Misconfigured, "KeyNotFound"),
    (
        "wrong version",
        |w| {
            w.key("hyok").versions.clear();
        },
        Denied,
        Misconfigured,
        "KeyNotFound",
    ),
    (
        "key being recovered",
        |w| w.fail(Fault::Conflict("ObjectIsBeingRecovered".into())),
        Unreachable,
        Unreachable,
        "ObjectIsBeingRecovered",
    ),
    (
        "deleted but recoverable",
        |w| w.fail(Fault::Conflict("ObjectIsDeletedButRecoverable".into())),
        Denied,
        Denied,
        "ObjectIsDeletedButRecoverable",
    ),
    (
        "unwrapKey not permitted",
        |w| w.set_operations("hyok", &["wrapKey"]),
        Denied,
        Misconfigured,
        "KeyOperationForbidden",
    ),
    ("role removed", |w| forbidden(w, "ForbiddenByRbac"), Denied, Misconfigured, "ForbiddenByRbac"),
    (
        "role removed, older form",
        |w| w.fail(Fault::ForbiddenOuter("ForbiddenByRbac".into())),
        Denied,
        Misconfigured,
        "ForbiddenByRbac",
    ),
    (
        "role removed, camel case",
        |w| w.fail(Fault::ForbiddenCamel("ForbiddenByRbac".into())),
        Denied,
        Misconfigured,
        "ForbiddenByRbac",
    ),
    ("access policy removed", |w| forbidden(w, "AccessDenied"), Denied, Misconfigured, "AccessDenied"),
    ("a reason nobody knows", |w| forbidden(w, "SomethingNew"), Denied, Misconfigured, "SomethingNew"),
    ("firewall", |w| forbidden(w, "ForbiddenByFirewall"), Unreachable, Unreachable, "ForbiddenByFirewall"),
    ("private link", |w| forbidden(w, "ForbiddenByConnection"), Unreachable, Unreachable, "ForbiddenByConnection"),
    ("Azure Policy", |w| forbidden(w, "ForbiddenByPolicy"), Denied, Denied, "ForbiddenByPolicy"),
    ("token refused", |w| w.fail(Fault::Unauthorized), Unreachable, Unreachable, "Unauthorized"),
    ("vault in another tenant", |w| w.fail(Fault::OtherTenant), Misconfigured, Misconfigured, "AKV10032"),
    ("throttled", |w| w.fail(Fault::Throttle(60)), Unreachable, Unreachable, "Throttled"),
    ("408", |w| w.fail(Fault::Status(408)), Unreachable, Unreachable, "InternalServerError"),
    ("500", |w| w.fail(Fault::Status(500)), Unreachable, Unreachable, "InternalServerError"),
    ("502", |w| w.fail(Fault::Status(502)), Unreachable, Unreachable, "InternalServerError"),
    ("503", |w| w.fail(Fault::Status(503)), Unreachable, Unreachable, "InternalServerError"),
    ("504", |w| w.fail(Fault::Status(504)), Unreachable, Unreachable, "InternalServerError"),
    ("bad parameter", |w| w.fail(Fault::BadParameter), Misconfigured, Misconfigured, "BadParameter"),
    ("a proxy's 403", |w| w.fail(Fault::Page(403)), Unreachable, Unreachable, "Http403"),
    ("a proxy's 404", |w| w.fail(Fault::Page(404)), Unreachable, Unreachable, "Http404"),
    ("a proxy's 302", |w| w.fail(Fault::Page(302)), Unreachable, Unreachable, "Http302"),
    ("garbage", |w| w.fail(Fault::Garbage), Unreachable, Unreachable, "Interrupted"),
    ("garbage in a good answer", |w| w.fail(Fault::GarbageBody), Unreachable, Unreachable, "GarbledAnswer"),
    ("connection ends", |w| w.fail(Fault::Drop), Unreachable, Unreachable, "Interrupted"),
    (
        "challenge for another service",
        |w| {
            w.revoke_tokens();
            w.fail(Fault::Challenge("https://management.azure.com".into()));
        },
        Misconfigured,
        Misconfigured,
        "ChallengeMismatch",
    ),
    ("our secret is wrong", |w| w.secret = "changed".into(), Unreachable, Unreachable, "AADSTS7000215"),
    ("our secret expired", |w| directory(w, 7_000_222), Unreachable, Unreachable, "AADSTS7000222"),
    ("our credential is bad", |w| directory(w, 70_002), Unreachable, Unreachable, "AADSTS70002"),
    ("our certificate is bad", |w| directory(w, 700_027), Unreachable, Unreachable, "AADSTS700027"),
    ("our certificate is unknown", |w| directory(w, 700_030), Unreachable, Unreachable, "AADSTS700030"),
    ("application deleted", |w| w.remove_principal(), Denied, Misconfigured, "AADSTS700016"),
    ("application unknown in the tenant", |w| directory(w, 700_011), Denied, Misconfigured, "AADSTS700011"),
    ("application disabled", |w| directory(w, 7_000_112), Denied, Denied, "AADSTS7000112"),
    ("application disabled, older", |w| directory(w, 70_001), Denied, Denied, "AADSTS70001"),
    ("application disabled, other", |w| directory(w, 1_000_031), Denied, Denied, "AADSTS1000031"),
    ("consent gone", |w| directory(w, 65_001), Denied, Denied, "AADSTS65001"),
    ("consent needs an administrator", |w| directory(w, 90_094), Denied, Denied, "AADSTS90094"),
    ("consent expired", |w| directory(w, 90_099), Denied, Denied, "AADSTS90099"),
    ("consent lacks the vault", |w| directory(w, 650_056), Denied, Denied, "AADSTS650056"),
    ("conditional access", |w| directory(w, 53_003), Denied, Denied, "AADSTS53003"),
    ("conditional access, device", |w| directory(w, 530_032), Denied, Denied, "AADSTS530032"),
    ("no such tenant", |w| directory(w, 90_002), Denied, Misconfigured, "AADSTS90002"),
    ("no federated credential", |w| directory(w, 70_021), Unreachable, Unreachable, "AADSTS70021"),
    ("federated subject differs", |w| directory(w, 700_213), Unreachable, Unreachable, "AADSTS700213"),
    ("directory in trouble", |w| directory(w, 90_006), Unreachable, Unreachable, "AADSTS90006"),
    ("directory in trouble", |w| directory(w, 90_012), Unreachable, Unreachable, "AADSTS90012"),
    ("directory in trouble", |w| directory(w, 90_090), Unreachable, Unreachable, "AADSTS90090"),
    ("directory in trouble", |w| directory(w, 90_091), Unreachable, Unreachable, "AADSTS90091"),
    ("a number nobody knows", |w| directory(w, 4_242_424), Unreachable, Unreachable, "AADSTS4242424"),
    ("directory 503", |w| w.directory = Some(DirectoryFault::Status(503)), Unreachable, Unreachable, "NoToken"),
    ("directory 429", |w| w.directory = Some(DirectoryFault::Status(429)), Unreachable, Unreachable, "NoToken"),
    (
        "directory answers garbage",
        |w| w.directory = Some(DirectoryFault::GarbageBody),
        Unreachable,
        Unreachable,
        "NoToken",
    ),
];

fn expect(row: &str, error: &ProviderError, verdict: Verdict, code: &str) {
    assert_eq!((error.verdict, error.code.as_str()), (verdict, code), "{row}: {error}");
    assert!(error.message.contains("azurekeyvault://v1.vault.azure.net/keys/hyok"), "{row}: {error}");
    assert!(error.message.contains(';'), "{row} says what to do: {error}");
}

#[tokio::test]
async fn every_answer_gives_its_verdict_both_ways_and_passes_again() {
    let mut rig = Rig::new(KeyKind::Rsa(2048));
    rig.settings.call_deadline_ms = 1_500;
    for (name, harm, worked, never, code) in ROWS {
        {
            let mut world = rig.fake.world();
            world.heal();
            world.principal = true;
            world.secret = crate::fake::SECRET.to_owned();
            world.create_key("hyok", KeyKind::Rsa(2048));
        }
        let (_, canary) = rig.key().await.generate(&volume()).await.unwrap();
        for (worked_before, verdict) in [(true, *worked), (false, *never)] {
            let settings = KeySettings { worked_before, ..rig.settings.clone() };
            let key = rig.connect(VAULT, &settings).await.unwrap();
            harm(&mut rig.fake.world());
            let error = key.probe(&volume(), &canary.blob).await.err().unwrap_or_else(|| panic!("{name}: worked"));
            expect(name, &error, verdict, code);
            let error = key.unwrap(&volume(), &canary.blob).await.err().unwrap_or_else(|| panic!("{name}: worked"));
            expect(name, &error, verdict, code);
        }
    }
}

#[tokio::test]
async fn after_any_passing_trouble_the_same_provider_is_live_again() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = rig.key().await;
    let (_, canary) = key.generate(&volume()).await.unwrap();
    key.probe(&volume(), &canary.blob).await.unwrap();
    for code in ["ForbiddenByRbac", "KeyDisabled", "ForbiddenByFirewall"] {
        forbidden(&mut rig.fake.world(), code);
        key.probe(&volume(), &canary.blob).await.unwrap_err();
        rig.fake.world().heal();
        assert!(key.probe(&volume(), &canary.blob).await.unwrap().is_some(), "the request's id");
    }
}

#[tokio::test]
async fn a_key_counts_as_used_after_its_first_unwrap() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = rig.key().await;
    let (_, canary) = key.generate(&volume()).await.unwrap();
    rig.fake.world().delete("hyok", true);
    assert_eq!(key.probe(&volume(), &canary.blob).await.unwrap_err().verdict, Misconfigured);
    rig.fake.world().delete("hyok", false);
    key.probe(&volume(), &canary.blob).await.unwrap();
    rig.fake.world().delete("hyok", true);
    assert_eq!(key.probe(&volume(), &canary.blob).await.unwrap_err().verdict, Denied);
}

#[tokio::test]
async fn a_fresh_token_sees_a_removed_principal_while_the_cached_one_still_works() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = rig.key().await;
    let (_, canary) = key.generate(&volume()).await.unwrap();
    key.unwrap(&volume(), &canary.blob).await.unwrap();
    rig.fake.world().remove_principal();
    key.unwrap(&volume(), &canary.blob).await.unwrap();
    let error = key.probe(&volume(), &canary.blob).await.unwrap_err();
    expect("removed principal", &error, Denied, "AADSTS700016");
    key.unwrap(&volume(), &canary.blob).await.unwrap();
}

#[tokio::test]
async fn each_probe_has_a_token_of_its_own() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = rig.key().await;
    let (_, canary) = key.generate(&volume()).await.unwrap();
    for _ in 0..3 {
        key.probe(&volume(), &canary.blob).await.unwrap();
    }
    let world = rig.fake.world();
    let mut tokens: Vec<u64> = world
        .log
        .iter()
        .filter(|line| line.operation == "unwrapkey" && line.status == 200)
        .map(|line| line.token)
        .collect();
    tokens.dedup();
    assert_eq!(tokens.len(), 3, "{tokens:?}");
}

#[tokio::test]
async fn a_token_that_ended_early_is_renewed_once() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = rig.key().await;
    let (_, wrapped) = key.generate(&file(1)).await.unwrap();
    rig.fake.world().revoke_tokens();
    key.unwrap(&file(1), &wrapped.blob).await.unwrap();
    assert_eq!(rig.fake.world().count("token", 200), 2);
    rig.fake.world().fail(Fault::Unauthorized);
    let error = key.unwrap(&file(1), &wrapped.blob).await.err().unwrap();
    assert_eq!((error.verdict, error.code.as_str()), (Unreachable, "Unauthorized"));
    assert!(rig.fake.world().count("token", 200) <= 4, "no storm of tokens");
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let mut rig = Rig::new(KeyKind::Rsa(2048));
    rig.settings.call_deadline_ms = 800;
    let key = rig.key().await;
    let (_, canary) = key.generate(&volume()).await.unwrap();
    let long = Duration::from_secs(5);
    let faults: [fn(&mut World, Duration); 2] =
        [|w, time| w.fail(Fault::Hang(time)), |w, time| w.directory = Some(DirectoryFault::Hang(time))];
    for fault in faults {
        fault(&mut rig.fake.world(), long);
        let start = Instant::now();
        let error = key.probe(&volume(), &canary.blob).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_millis(1_500), "{:?}", start.elapsed());
        assert_eq!(error.verdict, Unreachable, "{error}");
        rig.fake.world().heal();
    }
}

#[tokio::test]
async fn a_vault_that_cannot_be_reached_is_unreachable() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let (_, canary) = rig.key().await.generate(&volume()).await.unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (endpoint, ca_file, code) in [
        (format!("https://{closed}"), rig.settings.ca_file.clone(), "Connection"),
        ("https://no-such-vault.invalid".to_owned(), rig.settings.ca_file.clone(), "Dns"),
        (rig.fake.url(), None, "Tls"),
    ] {
        let settings = KeySettings { endpoint: Some(endpoint), ca_file, worked_before: true, ..rig.settings.clone() };
        let key = rig.connect(VAULT, &settings).await.unwrap();
        expect(code, &key.probe(&volume(), &canary.blob).await.unwrap_err(), Unreachable, code);
    }
    let settings = KeySettings { azure_authority: Some(format!("https://{closed}")), ..rig.settings.clone() };
    let key = rig.connect(VAULT, &settings).await.unwrap();
    expect("authority", &key.probe(&volume(), &canary.blob).await.unwrap_err(), Unreachable, "TokenUnreachable");
}

#[tokio::test]
async fn no_message_holds_the_secret_or_the_key() {
    let mut rig = Rig::new(KeyKind::Rsa(2048));
    rig.settings.call_deadline_ms = 1_500;
    let secret = rig.fake.world().secret.clone();
    let key = rig.key().await;
    let (_, canary) = key.generate(&volume()).await.unwrap();
    for (_, harm, ..) in ROWS.iter().filter(|row| row.4.starts_with("AADSTS")) {
        harm(&mut rig.fake.world());
        let error = key.probe(&volume(), &canary.blob).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&secret));
        let mut world = rig.fake.world();
        world.heal();
        world.principal = true;
        world.secret = secret.clone();
    }
}
