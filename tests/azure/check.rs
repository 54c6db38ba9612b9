//! `hyokfs check`: every permission by itself, the missing one named, with what to add.

use hyokfs::provider::check::{self, Report, Subject};
use hyokfs::provider::{KeySettings, KeyUri};

use crate::fake::{Fault, HSM, KeyKind, VAULT};
use crate::rig::Rig;

async fn run(rig: &Rig, host: &str) -> Report {
    let uri = KeyUri::AzureKeyVault { host: host.to_owned(), name: "hyok".to_owned(), version: None };
    check::azure(&uri, &rig.settings, &Subject::default()).await.unwrap()
}

#[tokio::test]
async fn a_key_that_is_set_up_well_passes_every_step() {
    for (kind, host) in [(KeyKind::Rsa(2048), VAULT), (KeyKind::Aes, HSM)] {
        let report = run(&Rig::new(kind), host).await;
        assert!(report.ok(), "{report:#?}");
        assert_eq!(report.steps.len(), 6);
        assert!(report.steps[4].message.contains("KeyNotFound"), "{report:#?}");
    }
}

#[tokio::test]
async fn each_missing_permission_is_named_by_itself() {
    for (operation, action, failed) in
        [("get", "read", 1), ("wrapkey", "wrap/action", 2), ("unwrapkey", "unwrap/action", 3)]
    {
        for code in ["ForbiddenByRbac", "AccessDenied"] {
            let rig = Rig::new(KeyKind::Rsa(2048));
            rig.fake.world().fail_at(operation, Fault::Forbidden(code.to_owned()));
            let report = run(&rig, VAULT).await;
            let bad: Vec<_> = report.steps.iter().filter(|step| !step.ok).collect();
            assert_eq!(bad.len(), 1, "{report:#?}");
            assert!(std::ptr::eq(bad[0], &report.steps[failed]));
            assert_eq!(bad[0].code.as_deref(), Some(code));
            assert_eq!(bad[0].missing.as_deref(), Some(format!("Microsoft.KeyVault/vaults/keys/{action}").as_str()));
            let statement = bad[0].statement.as_ref().unwrap().to_string();
            assert!(statement.contains("az role assignment create"), "{statement}");
            assert!(bad[0].place.as_ref().unwrap().contains("https://v1.vault.azure.net/keys/hyok"));
            assert!(!report.ok());
        }
    }
}

#[tokio::test]
async fn what_is_no_permission_is_not_called_one() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    rig.fake.world().set_operations("hyok", &["wrapKey"]);
    let report = run(&rig, VAULT).await;
    let bad = report.steps.iter().find(|step| !step.ok).unwrap();
    assert_eq!((bad.code.as_deref(), bad.missing.as_deref()), (Some("KeyOperationForbidden"), Some("unwrapKey")));

    let rig = Rig::new(KeyKind::Rsa(2048));
    rig.fake.world().enable("hyok", false);
    let report = run(&rig, VAULT).await;
    let bad: Vec<_> = report.steps.iter().filter(|step| !step.ok).collect();
    assert!(!bad.is_empty());
    assert!(bad.iter().all(|step| step.code.as_deref() == Some("KeyDisabled") && step.missing.is_none()), "{bad:#?}");

    let rig = Rig::new(KeyKind::Rsa(2048));
    rig.fake.world().remove_principal();
    let report = run(&rig, VAULT).await;
    assert_eq!(report.steps.len(), 1);
    assert_eq!(report.steps[0].code.as_deref(), Some("AADSTS700016"));
}

#[tokio::test]
async fn only_azure_keys_are_checked_here() {
    assert!(
        check::azure(&KeyUri::Local { path: None, name: None }, &KeySettings::default(), &Subject::default())
            .await
            .is_err()
    );
}
