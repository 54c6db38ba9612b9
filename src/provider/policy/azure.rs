//! Azure: one built-in role on one key. Nothing is made but the assignment.

use serde_json::json;

use super::hcl;
use super::{Access, PolicyError, check};

/// "Key Vault Crypto Service Encryption User": read the key's metadata, wrap, unwrap.
const VAULT_ROLE: &str = "e147488a-f6f5-4113-8e2d-b22465e65bf6";
const VAULT_ROLE_NAME: &str = "Key Vault Crypto Service Encryption User";
/// "Managed HSM Crypto Service Encryption User", a local role of the HSM.
const HSM_ROLE: &str = "33413926-3206-4cdd-b39a-83574fe37a17";
const HSM_ROLE_NAME: &str = "Managed HSM Crypto Service Encryption User";

/// One role assignment.
pub(super) struct Assignment<'a> {
    /// The vault's or HSM's name.
    vault: &'a str,
    host: &'a str,
    key: &'a str,
    principal: &'a str,
    hsm: bool,
}

impl<'a> Assignment<'a> {
    pub(super) fn new(host: &'a str, key: &'a str, access: &'a Access) -> Result<Self, PolicyError> {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let host = host.split(':').next().unwrap_or(host);
        let vault = host.split('.').next().unwrap_or_default();
        check("the vault's name", vault, 3..=24, name, "3 to 24 letters, digits and hyphens")?;
        check("the vault's host", host, 3..=253, |c| name(c) || c == '.', "letters, digits, hyphens and dots")?;
        check("the key's name", key, 1..=127, name, "1 to 127 letters, digits and hyphens")?;
        let principal = access.vendor.as_str();
        let groups: Vec<usize> = principal.split('-').map(str::len).collect();
        if groups != [8, 4, 4, 4, 12] || !principal.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
            let want = "give the object id of the vendor's service principal in your tenant \
                        (`az ad sp show --id APPLICATION_ID --query id`)";
            return Err(PolicyError::Value { option: "--vendor", value: principal.to_owned(), want });
        }
        Ok(Assignment { vault, host, key, principal, hsm: host.contains(".managedhsm.") })
    }

    fn scope(&self) -> String {
        format!("/keys/{}", self.key)
    }

    /// Bicep; `None` for a managed HSM, whose local roles Azure Resource Manager does not assign.
    pub(super) fn bicep(&self) -> Option<String> {
        if self.hsm {
            return None;
        }
        let Assignment { vault, key, principal, .. } = self;
        Some(format!(
            "// Lets the vendor's hyokfs nodes wrap and unwrap with one key. The vault must use Azure RBAC.\n\
             // Deploy in the vault's resource group: az deployment group create -g GROUP -f hyokfs.bicep\n\
             // Taking the key away: disable the key, or delete this assignment.\n\n\
             @description('Object id of the vendor\\'s service principal in this tenant')\n\
             param principalId string = '{principal}'\n\n\
             // {VAULT_ROLE_NAME}\n\
             var roleId = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '{VAULT_ROLE}')\n\n\
             resource vault 'Microsoft.KeyVault/vaults@2023-07-01' existing = {{\n  name: '{vault}'\n}}\n\n\
             resource key 'Microsoft.KeyVault/vaults/keys@2023-07-01' existing = {{\n  parent: vault\n  name: '{key}'\n}}\n\n\
             resource hyokfs 'Microsoft.Authorization/roleAssignments@2022-04-01' = {{\n  name: guid(key.id, principalId, roleId)\n  scope: key\n  properties: {{\n    roleDefinitionId: roleId\n    principalId: principalId\n    principalType: 'ServicePrincipal'\n  }}\n}}\n\n\
             // Hand these over to the vendor.\n\
             output key string = 'azurekeyvault://{host}/keys/{key}'\n\
             output tenantId string = tenant().tenantId\n",
            host = self.host
        ))
    }

    pub(super) fn terraform(&self) -> String {
        let head = "# Lets the vendor's hyokfs nodes wrap and unwrap with one key.\n\
                    # Taking the key away: disable the key, or delete this assignment.\n\n\
                    terraform {\n  required_providers {\n    azurerm = {\n      source  = \"hashicorp/azurerm\"\n      version = \">= 4.0\"\n    }\n  }\n}\n\n\
                    variable \"resource_group\" {\n  description = \"Resource group of the vault or managed HSM\"\n  type        = string\n}\n\n\
                    data \"azurerm_client_config\" \"this\" {}\n\n";
        let (vault, key, principal) = (hcl::string(self.vault), hcl::string(self.key), hcl::string(self.principal));
        let body = if self.hsm {
            format!(
                "data \"azurerm_key_vault_managed_hardware_security_module\" \"this\" {{\n  name                = {vault}\n  resource_group_name = var.resource_group\n}}\n\n\
                 # {HSM_ROLE_NAME}\n\
                 resource \"azurerm_key_vault_managed_hardware_security_module_role_assignment\" \"hyokfs\" {{\n  managed_hsm_id     = data.azurerm_key_vault_managed_hardware_security_module.this.id\n  name               = uuidv5(\"url\", {assignment})\n  scope              = {scope}\n  role_definition_id = \"/Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{HSM_ROLE}\"\n  principal_id       = {principal}\n}}\n\n",
                assignment = hcl::string(&format!("https://{}/keys/{}/hyokfs/{}", self.host, self.key, self.principal)),
                scope = hcl::string(&self.scope()),
            )
        } else {
            format!(
                "data \"azurerm_key_vault\" \"this\" {{\n  name                = {vault}\n  resource_group_name = var.resource_group\n}}\n\n\
                 data \"azurerm_key_vault_key\" \"this\" {{\n  name         = {key}\n  key_vault_id = data.azurerm_key_vault.this.id\n}}\n\n\
                 resource \"azurerm_role_assignment\" \"hyokfs\" {{\n  scope                = data.azurerm_key_vault_key.this.resource_versionless_id\n  role_definition_name = \"{VAULT_ROLE_NAME}\"\n  principal_id         = {principal}\n  principal_type       = \"ServicePrincipal\"\n}}\n\n"
            )
        };
        let outputs = format!(
            "# Hand these over to the vendor.\n\
             output \"key\" {{\n  value = {}\n}}\n\n\
             output \"tenant_id\" {{\n  value = data.azurerm_client_config.this.tenant_id\n}}\n",
            hcl::string(&format!("azurekeyvault://{}/keys/{}", self.host, self.key))
        );
        format!("{head}{body}{outputs}")
    }

    /// The facts, and the command that makes the assignment.
    pub(super) fn json(&self) -> String {
        let Assignment { vault, host, key, principal, hsm } = self;
        let (role, name) = if *hsm { (HSM_ROLE, HSM_ROLE_NAME) } else { (VAULT_ROLE, VAULT_ROLE_NAME) };
        let command = if *hsm {
            format!(
                "az keyvault role assignment create --hsm-name {vault} --role '{name}' --assignee-object-id {principal} \
                 --assignee-principal-type ServicePrincipal --scope {}",
                self.scope()
            )
        } else {
            format!(
                "az role assignment create --role '{role}' --assignee-object-id {principal} --assignee-principal-type \
                 ServicePrincipal --scope \"$(az keyvault show --name {vault} --query id --output tsv)/keys/{key}\""
            )
        };
        let value = json!({
            "role_assignment": {"role_definition_id": role, "role_name": name, "principal_id": principal,
                "scope": format!("{host}{}", self.scope()), "command": command},
            "access_policy_instead": if *hsm { json!(null) } else { json!({"object_id": principal, "key_permissions": ["get", "wrapKey", "unwrapKey"]}) },
            "hand_over": {"key": format!("azurekeyvault://{host}/keys/{key}")},
        });
        format!("{value:#}\n")
    }
}
