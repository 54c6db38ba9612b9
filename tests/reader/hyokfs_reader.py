#!/usr/bin/env python3
"""Reads a hyokfs store without hyokfs: written from docs/format.md alone. Needs the package `cryptography` (44 or newer).

    hyokfs_reader.py STORE             prints a line for each entry: type, size, SHA-256 or target, name (escaped),
                                       and below it one for each extended attribute
    hyokfs_reader.py STORE FOLDER      writes the tree into FOLDER
    --keystore PATH                    instead of the keystore that hyokfs.toml names
    --passphrase-file FILE             for a keystore that a passphrase protects
    --keys FILE                        keys that somebody else unwrapped, whatever key service that was; JSON, base64:
                                       {"secret": volume secret, "files": {file id: file key}}; or "group" for "files"
"""
import argparse, base64, hashlib, hmac, json, os, re, stat, struct, sys, tomllib
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PAGE, SEAL, CAP = 4096, 40, 4056


class Damaged(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Damaged(what)


def mac(key, text):
    return hmac.new(key, text, hashlib.sha256).digest()


def hkdf(salt, key, info, length=32):
    return HKDF(hashes.SHA256(), length, salt, info).derive(key)


def unbase64url(text):
    need(re.fullmatch(rb"[A-Za-z0-9_-]*", text), "not base64url")
    out = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    need(base64url(out) == text, "base64url with unused bits")
    return out


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def hchacha20(key, nonce):
    x = list(struct.unpack("<16L", b"expand 32-byte k" + key + nonce))

    def quarter(a, b, c, d):
        for i, j, k, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[i] = (x[i] + x[j]) & 0xFFFFFFFF
            x[k] ^= x[i]
            x[k] = ((x[k] << bits) | (x[k] >> (32 - bits))) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            quarter(*(column + row for row in (0, 4, 8, 12)))
        for column in range(4):
            quarter(column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
    return struct.pack("<8L", *x[:4], *x[12:])


def unseal(key, aad, sealed):
    need(len(sealed) >= 40, "a sealed value is too short")
    try:
        cipher = ChaCha20Poly1305(hchacha20(key, sealed[:16]))
        return cipher.decrypt(bytes(4) + sealed[16:24], sealed[24:], aad)
    except InvalidTag:
        raise Damaged("a sealed value does not open") from None


class LocalKey:
    def __init__(self, path, name, passphrase):
        with open(path, "rb") as file:
            store = tomllib.load(file)
        need(store["version"] == 1, "keystore version")
        protection = store["protection"]
        if protection["kind"] == "secret-file":
            with open(path + ".secret") as file:
                secret = bytes.fromhex(file.read().strip())
        else:
            from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
            salt = base64.b64decode(protection["salt"])
            secret = Argon2id(salt=salt, length=32, iterations=protection["passes"], lanes=protection["lanes"],
                              memory_cost=protection["memory-kib"]).derive(passphrase)
        check = base64.b64decode(store["check"])
        need(unseal(secret, b"hyokfs keystore v1 check", check) == bytes(32), "the keystore's secret is another one's")
        entry = next(entry for entry in store["key"] if entry["name"] == name)
        need(entry["state"] == "enabled", f"the key is {entry['state']}")
        place = b"hyokfs keystore v1 key" + bytes.fromhex(entry["id"]) + name.encode()
        self.key = unseal(secret, place, base64.b64decode(entry["sealed"]))
        self.tag = hashlib.sha256(place).digest()[:16]

    def unwrap(self, blob, volume, file, tenant):
        need(len(blob) == 89 and blob[0] == 1 and blob[1:17] == self.tag, "another key's blob")
        aad = b"hyokfs local wrap v1" + self.tag + volume
        aad += b"\1" + file if file else bytes(17)
        aad += b"\0" if tenant is None else b"\1" + tenant.encode()
        return unseal(self.key, aad, blob[17:])


class GivenKeys:
    """Keys by hand: what is wrapped is not looked at, only whose key it is."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.keys = json.load(file)

    def of_volume(self, field):
        need(field in self.keys, f"no `{field}` is given")
        return base64.b64decode(self.keys[field])

    def unwrap(self, blob, volume, file, tenant):
        need(file.hex() in self.keys.get("files", {}), f"no key is given for the file {file.hex()}")
        return base64.b64decode(self.keys["files"][file.hex()])


class Volume:
    def __init__(self, store, keystore, passphrase, given=None):
        with open(os.path.join(store, "hyokfs.toml"), "rb") as file:
            record = tomllib.load(file)
        need(record["format"] == 1, f"format {record['format']} is not 1")
        self.id, self.tenant = bytes.fromhex(record["volume"]), record.get("tenant")
        if given:
            entry, self.wrapper = record["key"][0], given
        else:
            entry = next(key for key in record["key"] if re.match(r"local\b", key["uri"]))
            path, _, name = entry["uri"].removeprefix("local").removeprefix(":").partition("#")
            home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
            place = keystore or path or os.path.join(home, "hyokfs/keys")
            self.wrapper = LocalKey(place, name or "default", passphrase)
        self.slot = entry["slot"]
        wrapped = lambda field: base64.b64decode(entry[field])
        unwrap = given.of_volume if given else lambda field: self.wrapper.unwrap(wrapped(field), self.id, None, self.tenant)
        secret = unwrap("secret")
        derive = lambda label: hkdf(self.id, secret, b"hyokfs/1 " + label)
        self.name_key, self.name_mac = derive(b"name encryption"), derive(b"name authentication")
        self.header, self.mixing, self.small = derive(b"header"), derive(b"mixing"), derive(b"small")
        self.root = hkdf(self.id, secret, b"hyokfs/1 root directory", 16)
        lines = ["hyokfs volume record"]
        lines += [f"{field}={record[field]}" for field in ("format", "generation", "volume", "suite", "granularity",
                  "names", "header-len", "max-poll-interval-ms", "max-lease-ms")]
        lines += ["tenant=" + ("-" if self.tenant is None else "+" + self.tenant), f"keys={len(record['key'])}"]
        for key in record["key"]:
            lines += [f"{field}={key[field]}" for field in ("slot", "uri", "secret", "canary")]
            lines.append("group=" + key.get("group", "-"))
        text = "".join(line + "\n" for line in lines).encode()
        need(hmac.compare_digest(mac(derive(b"volume record"), text), base64.b64decode(record["mac"])), "hyokfs.toml")
        self.group = unwrap("group") if record["granularity"] == "volume" else None
        self.header_len, self.plain = record["header-len"], record["names"] == "plain"

    def directory(self, path, parent):
        if parent is None:
            return self.root
        target = os.readlink(os.path.join(path, b".hyokfs.dir"))
        need(target.startswith(b"hyokfs1."), "directory record")
        record = unbase64url(target[8:])
        body, tag = record[:-32], record[-32:]
        need(hmac.compare_digest(mac(self.header, b"hyokfs/1 directory" + self.id + body), tag), "directory record")
        need(len(body) == 17 + 16 * body[16], "directory record")
        parents = [body[at:at + 16] for at in range(17, len(body), 16)]
        need(parent in parents, "a directory in a foreign place")
        return body[:16]

    def name(self, folder, directory, entry):
        if self.plain:
            return entry[2:] if entry.startswith(b"=.") else entry
        text = entry
        if entry.startswith(b"="):
            text = os.readlink(os.path.join(folder, entry + b".name"))
            need(len(text) > 255 and entry[1:] == base64url(hashlib.sha256(text).digest()), "long name")
        sealed = unbase64url(text)
        stream = Cipher(algorithms.AES(self.name_key), modes.CTR(sealed[:16])).decryptor()
        name = stream.update(sealed[16:]) + stream.finalize()
        need(hmac.compare_digest(mac(self.name_mac, directory + name)[:16], sealed[:16]), "name")
        return name

    def read_header(self, header, directory):
        need(header[:10] == b"HYOKFS\0\1\1\0", "no file header of version 1")
        need(hmac.compare_digest(mac(self.header, header[:-32]), header[-32:]), "file header")
        need(header[12:14] == struct.pack("<H", len(header)) and header[16:32] == self.id, "header of another volume")
        need(header[80] in (1, 2, 3, 255), "number of parents")
        parents = [header[96 + 16 * i:112 + 16 * i] for i in range(3)][:header[80]]
        need(header[80] == 255 or directory in parents, "a file in a foreign directory")
        file, at, key, sealed, groups = header[32:48], 145, None, {}, {}
        for _ in range(header[144]):
            via, at = header[at], at + 1
            need(via in (1, 2, 3), "kind of key slot")
            width = {1: 1, 2: 16, 3: 17}[via]
            by, at = header[at:at + width], at + width
            length, at = struct.unpack("<H", header[at:at + 2])[0], at + 2
            wrapped, at = header[at:at + length], at + length
            if via == 1 and by[0] == self.slot:
                key = self.wrapper.unwrap(wrapped, self.id, file, self.tenant)
            elif via == 2:
                sealed[by] = wrapped
            elif via == 3 and by[0] == self.slot:
                groups[by[1:]] = wrapped
        for group, wrapped in sealed.items():
            if group == self.id and self.group:
                key = unseal(self.group, self.id + file, wrapped)
            elif group in groups:
                key = unseal(self.wrapper.unwrap(groups[group], self.id, group, self.tenant), self.id + file, wrapped)
        need(key, "no slot for this key")
        need(hkdf(file, key, b"hyokfs/1 commitment") == header[48:80], "key commitment")
        return file, key, header[10]

    def read_file(self, path, directory):
        """Gives the plaintext piece by piece."""
        with open(path, "rb") as source:
            length = os.fstat(source.fileno()).st_size
            pages, tail = divmod(length, PAGE)
            page = source.read(PAGE)
            need(pages and any(page), "an interrupted creation")
            file, key, suite = self.read_header(page[:self.header_len], directory)
            aead, ciphers = {1: AESGCM, 2: ChaCha20Poly1305}[suite], {}
            capacity = lambda index: CAP if index else CAP - 16 - self.header_len
            need(tail <= capacity(pages - 1), "size tail")
            size = sum(map(capacity, (0,) if pages > 1 else ())) + max(pages - 2, 0) * CAP + tail
            start = floor = 0
            sparse = False
            for index in range(pages):
                data = b""
                if index == 0 or any(page):
                    slot = page if index else page[self.header_len:]
                    epoch, nonce, tag, (count, flags) = slot[:8], slot[8:20], slot[20:36], struct.unpack("<HH", slot[36:40])
                    need(flags == 0 and count <= len(slot) - SEAL and not any(slot[SEAL + count:]), f"page {index}")
                    if epoch not in ciphers:
                        info = b"hyokfs page key\1" + self.id + bytes([suite]) + epoch
                        ciphers[epoch] = aead(hkdf(file, key + self.mixing, info))
                    try:
                        aad = struct.pack("<QHH", index, count, flags)
                        data = ciphers[epoch].decrypt(nonce, slot[SEAL:SEAL + count] + tag, aad)
                    except InvalidTag:
                        raise Damaged(f"page {index}") from None
                if index == 0:
                    floor, flags = struct.unpack("<QQ", data[:16])
                    need(flags in (0, 1) and size >= floor, "shorter than its floor")
                    data, sparse = data[16:], flags == 1
                need(sparse or len(data) >= min(capacity(index), floor - start), f"page {index} is below the floor")
                place = min(capacity(index), size - start)
                yield data[:place].ljust(place, b"\0")
                start += capacity(index)
                page = source.read(PAGE)

    def walk(self, path, parent=None, names=()):
        """Gives (kind, names, path in the store, content): pieces of a file, the target of a symlink, or None."""
        directory = self.directory(path, parent)
        for entry in sorted(os.listdir(path)):
            if entry.startswith(b".hyokfs.") or entry in (b"hyokfs.toml", b"hyokfs.toml.bak"):
                continue
            if entry.startswith(b"=") and not entry.startswith(b"=.") and entry.endswith(b".name"):
                continue
            inside, here = os.path.join(path, entry), names + (self.name(path, directory, entry),)
            mode = os.lstat(inside).st_mode
            if stat.S_ISDIR(mode):
                yield "directory", here, inside, None
                yield from self.walk(inside, directory, here)
            elif stat.S_ISLNK(mode):
                target = unbase64url(os.readlink(inside))
                yield "symlink", here, inside, unseal(self.small, b"hyokfs/1 symlink" + self.id, target)
            elif stat.S_ISREG(mode):
                yield "file", here, inside, self.read_file(inside, directory)
            else:
                yield "special", here, inside, None

    def attributes(self, path):
        """The extended attributes of an entry of the store."""
        for key in os.listxattr(path, follow_symlinks=False):
            if key.startswith("user.hyokfs."):
                plain = unseal(self.small, b"hyokfs/1 xattr" + self.id, os.getxattr(path, key, follow_symlinks=False))
                name, value = plain[1:1 + plain[0]], plain[1 + plain[0]:]
                tag = mac(self.name_mac, b"hyokfs xattr v1\0" + name)[:16]
                need(key[12:].encode() == base64url(tag), "attribute under another's name")
                yield name, value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--keystore")
    parser.add_argument("--passphrase-file")
    parser.add_argument("--keys")
    options = parser.parse_args()
    passphrase = open(options.passphrase_file, "rb").read().rstrip(b"\r\n") if options.passphrase_file else None
    given = GivenKeys(options.keys) if options.keys else None
    volume = Volume(options.store, options.keystore, passphrase, given)
    for kind, names, inside, content in volume.walk(os.fsencode(options.store)):
        size, digest, out = 0, hashlib.sha256(), None
        if options.folder:
            need(not any(name in (b"", b".", b"..") or b"/" in name for name in names), "name")
            path = os.path.join(os.fsencode(options.folder), *names)
            if kind == "directory":
                os.makedirs(path)
            elif kind == "symlink":
                os.symlink(content, path)
            elif kind == "file":
                out = open(path, "xb")
        if kind == "file":
            for piece in content:
                size += len(piece)
                digest.update(piece)
                if out:
                    out.write(piece)
        if out:
            out.close()
        told = {"file": digest.hexdigest(), "symlink": repr(content)[2:-1]}.get(kind, "-")
        print(kind, size, told, repr(b"/".join(names))[2:-1], sep="\t")
        for name, value in sorted(volume.attributes(inside)) if kind in ("file", "directory") else ():
            print("attribute", len(value), repr(value)[2:-1], repr(name)[2:-1], sep="\t")


if __name__ == "__main__":
    try:
        main()
    except Damaged as error:
        sys.exit(f"damaged, altered, or not what the format says: {error}")
