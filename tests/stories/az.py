#!/usr/bin/env python3
"""`az` of the documents' commands, against the fake vault: each command does what the real one does to the vault or the
directory, by the fake's control port. What is not known here fails: a command, an argument, a value that Azure would
refuse or that leaves the promised minimum.

Environment: AZ_CONTROL (the fake's control address), AZ_STATE (a file), AZ_TENANT (who types)."""
import json, os, re, sys, urllib.request

SUBSCRIPTION = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups"
APP = "99999999-8888-7777-6666-555555555555"
# Made up: our application in the customer's tenant, the signed-in user, the node's identity (principal and client).
PRINCIPAL, USER = "aaaaaaaa-0000-0000-0000-000000000001", "aaaaaaaa-0000-0000-0000-000000000002"
IDENTITY, IDENTITY_CLIENT = "aaaaaaaa-0000-0000-0000-000000000003", "aaaaaaaa-0000-0000-0000-000000000004"
VM = "worker-1"


def fail(text):
    sys.exit(f"az (shim): {text}")


def need(condition, text):
    if not condition:
        fail(text)


def control(order, **fields):
    body = json.dumps({"do": order, **fields}).encode()
    with urllib.request.urlopen(urllib.request.Request(os.environ["AZ_CONTROL"], body), timeout=30) as answer:
        return json.load(answer)


def one(options, name, pattern):
    values = options[name]
    need(len(values) == 1 and re.fullmatch(pattern, values[0]), f"{name} {values} is not {pattern}")
    return values[0]


def vault_id(state):
    need("vault" in state, "there is no vault")
    return f"{SUBSCRIPTION}/hyok/providers/Microsoft.KeyVault/vaults/{state['vault']}"


def key_id(state, name):
    return f"https://{state['vault']}.vault.azure.net/keys/{name}"


def group_create(state, options):
    one(options, "--location", "[a-z]+")
    state["group"] = one(options, "--name", "[a-z-]+")


def keyvault_create(state, options):
    need(one(options, "--resource-group", ".+") == state.get("group"), "no such resource group")
    one(options, "--location", "[a-z]+")
    one(options, "--sku", "standard|premium")
    one(options, "--enable-rbac-authorization", "true")
    one(options, "--enable-purge-protection", "true")
    one(options, "--retention-days", "[7-9]|[1-8][0-9]|90")
    state["vault"] = one(options, "--name", "[a-zA-Z][a-zA-Z0-9-]{1,22}[a-zA-Z0-9]|v1")


def keyvault_show(state, options):
    need(one(options, "--name", ".+") == state.get("vault"), "no such vault")
    return {"id": vault_id(state)}


def signed_in_user(state, options):
    return {"id": USER}


def key_create(state, options):
    need(one(options, "--vault-name", ".+") == state.get("vault"), "no such vault")
    need(state.get("officer"), "403: the caller may not create keys in this vault")
    one(options, "--kty", "RSA|RSA-HSM")
    need(options["--ops"] == ["wrapKey", "unwrapKey"], "--ops other than wrapKey unwrapKey")
    name = one(options, "--name", "[0-9a-zA-Z-]{1,127}")
    control("create", name=name, size=int(one(options, "--size", "2048|3072|4096")))


def sp_create(state, options):
    need(one(options, "--id", ".+") == APP, "no such application")
    need(state.get("app", True), "no such application")
    state["principal"] = True
    control("restore-principal")
    return {"id": PRINCIPAL}


def role_create(state, options):
    role, scope = one(options, "--role", ".+"), one(options, "--scope", "/.+")
    who, kind = one(options, "--assignee-object-id", ".+"), one(options, "--assignee-principal-type", ".+")
    if role == "Key Vault Crypto Officer":
        need((who, kind, scope) == (USER, "User", vault_id(state)), "another user or scope than meant")
        state["officer"] = True
        return
    need(role == "Key Vault Crypto Service Encryption User", f"the role {role} is not the one to give")
    need((who, kind) == (PRINCIPAL, "ServicePrincipal") and state.get("principal"), "no such service principal")
    need(scope == vault_id(state) + "/keys/hyok", "a scope other than the one key")
    control("heal")


def list_versions(state, options):
    need(one(options, "--vault-name", ".+") == state.get("vault"), "no such vault")
    name = one(options, "--name", ".+")
    return [{"kid": f"{key_id(state, name)}/{version}"} for version in control("versions", key=name)["versions"]]


def set_attributes(state, options):
    kid, enabled = one(options, "--id", "https://.+"), one(options, "--enabled", "true|false")
    vault, name, version = re.fullmatch(r"https://([^/]+)\.vault\.azure\.net/keys/([^/]+)/([^/]+)", kid).groups()
    need(vault == state.get("vault"), "no such vault")
    control("enable" if enabled == "true" else "disable", key=name, version=version)


def account_show(state, options):
    return {"tenantId": os.environ["AZ_TENANT"]}


def identity_create(state, options):
    one(options, "--resource-group", "[a-z]+")
    state["identity"] = one(options, "--name", "[a-z-]+")


def identity_show(state, options):
    one(options, "--resource-group", "[a-z]+")
    need(one(options, "--name", ".+") == state.get("identity"), "no such identity")
    place = f"{SUBSCRIPTION}/nodes/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{state['identity']}"
    return {"id": place, "principalId": IDENTITY, "clientId": IDENTITY_CLIENT}


def vm_identity_assign(state, options):
    one(options, "--resource-group", "[a-z]+")
    one(options, "--name", VM)
    one(options, "--identities", r"/subscriptions/.+/userAssignedIdentities/" + state.get("identity", "none"))


def app_create(state, options):
    one(options, "--display-name", ".+")
    one(options, "--sign-in-audience", "AzureADMultipleOrgs")
    return {"appId": APP}


def federated_create(state, options):
    need(one(options, "--id", ".+") == APP, "no such application")
    given = json.loads(options["--parameters"][0])
    need(set(given) == {"name", "issuer", "subject", "audiences"}, f"fields {sorted(given)}")
    need(given["issuer"] == f"https://login.microsoftonline.com/{os.environ['AZ_TENANT']}/v2.0", "issuer")
    need(given["subject"] == IDENTITY and given["audiences"] == ["api://AzureADTokenExchange"], "subject or audience")


# Words, what they do, the arguments that must be there and no other. `--query` and `--output tsv` go with what prints.
COMMANDS = {
    "group create": (group_create, "--name --location"),
    "keyvault create": (
        keyvault_create,
        "--name --resource-group --location --sku --enable-rbac-authorization --enable-purge-protection --retention-days",
    ),
    "keyvault show": (keyvault_show, "--name"),
    "ad signed-in-user show": (signed_in_user, ""),
    "role assignment create": (role_create, "--role --scope --assignee-object-id --assignee-principal-type"),
    "keyvault key create": (key_create, "--vault-name --name --kty --size --ops"),
    "keyvault key list-versions": (list_versions, "--vault-name --name"),
    "keyvault key set-attributes": (set_attributes, "--id --enabled"),
    "ad sp create": (sp_create, "--id"),
    "account show": (account_show, ""),
    "identity create": (identity_create, "--resource-group --name"),
    "identity show": (identity_show, "--resource-group --name"),
    "vm identity assign": (vm_identity_assign, "--resource-group --name --identities"),
    "ad app create": (app_create, "--display-name --sign-in-audience"),
    "ad app federated-credential create": (federated_create, "--id --parameters"),
}


def main():
    words = sys.argv[1:]
    options = [at for at, word in enumerate(words) if word.startswith("--")] or [len(words)]
    name = " ".join(words[:options[0]])
    need(name in COMMANDS, f"no command `{name}`")
    run, known = COMMANDS[name]
    given = {words[at]: words[at + 1:end] for at, end in zip(options, options[1:] + [len(words)]) if at < len(words)}
    need(len(given) == len([word for word in words if word.startswith("--")]), "an argument twice")
    query, output = given.pop("--query", None), given.pop("--output", None)
    need(set(given) == set(known.split()), f"`{name}` takes {known or 'nothing'}, not {sorted(given)}")
    path = os.environ["AZ_STATE"]
    state = json.load(open(path)) if os.path.exists(path) else {}
    answer = run(state, given)
    with open(path, "w") as file:
        json.dump(state, file)
    need((query is None) == (output is None), "--query without --output or the reverse")
    if query is None:
        return print(json.dumps(answer))
    need(answer is not None, f"`{name}` prints nothing to query here")
    need(output == ["tsv"], f"--output {output}")
    if query[0].startswith("[]."):
        print("\n".join(item[query[0][3:]] for item in answer))
    else:
        need(query[0] in answer, f"--query {query[0]} finds nothing")
        print(answer[query[0]])


main()
