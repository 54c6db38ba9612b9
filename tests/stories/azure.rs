//! Azure: a volume under a key of the fake vault, reached with an application's secret; and each way of the customer's to
//! say no.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::common::{Store, World};
use crate::fake_azure::{CLIENT, FakeAzure, Fault, KeyKind, TENANT, VAULT};
use crate::story::{Cause, tell};

/// A customer, a vendor and a volume between them.
pub struct Azure {
    pub fake: FakeAzure,
    pub store: Store,
}

impl Azure {
    /// Everything that stands before `hyokfs mount`.
    pub fn new() -> Azure {
        let fake = FakeAzure::start().unwrap();
        fake.world().create_key("hyok", KeyKind::Rsa(2048));
        let mut world = World::new();
        let config = world.path().join("acme.toml");
        let (ca, secret) = (world.path().join("ca.pem"), world.path().join("secret"));
        fs::write(&ca, fake.ca_pem()).unwrap();
        private(&secret, &fake.world().secret);
        let text = format!(
            "[key]\nendpoint = \"{url}\"\nazure-authority = \"{url}\"\nca-file = \"{}\"\nazure-credential = \"client-secret\"\n\
             azure-client-secret-file = \"{}\"\nazure-tenant-id = \"{TENANT}\"\nazure-client-id = \"{CLIENT}\"\n",
            ca.display(),
            secret.display(),
            url = fake.url(),
        );
        fs::write(&config, text).unwrap();
        world.set("HYOKFS_CONFIG", config.to_str().unwrap());
        let path = world.path().join("store");
        world.ok(["init", "--key", &format!("azurekeyvault://{VAULT}/keys/hyok"), path.to_str().unwrap()]);
        Azure { fake, store: Store { keystore: world.path().join("none"), world, path } }
    }

    fn tell(&self, code: &str, take: &dyn Fn(), give: &dyn Fn()) {
        tell(&self.store, &Cause { code, take, give });
    }

    /// The vault answers like that, until it is healed.
    fn forbidden(&self, inner: &str) {
        self.tell(inner, &|| self.fake.world().fail(Fault::Forbidden(inner.to_owned())), &|| self.fake.world().heal());
    }
}

/// A file of mode 0600.
pub fn private(path: &Path, text: &str) {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn key_disabled() {
    let azure = Azure::new();
    let set = |enabled| azure.fake.world().enable("hyok", enabled);
    azure.tell("KeyDisabled", &|| set(false), &|| set(true));
}

#[test]
fn role_assignment_removed() {
    Azure::new().forbidden("ForbiddenByRbac");
}

#[test]
fn access_policy_removed() {
    Azure::new().forbidden("AccessDenied");
}

#[test]
fn key_deleted_and_recovered() {
    let azure = Azure::new();
    let set = |deleted| azure.fake.world().delete("hyok", deleted);
    azure.tell("KeyNotFound", &|| set(true), &|| set(false));
}

#[test]
fn service_principal_removed() {
    let azure = Azure::new();
    // Tokens that were given stay valid, as they do in Azure: only a fresh one tells.
    let set = |there| azure.fake.world().principal = there;
    azure.tell("AADSTS700016", &|| set(false), &|| set(true));
}
