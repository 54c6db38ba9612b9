//! What must not be found: secrets in all the shapes that they may take.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// One byte string to look for, and what it is.
pub struct Needle {
    pub kind: &'static str,
    pub bytes: Vec<u8>,
}

/// Collects needles; too short ones would be found anywhere.
#[derive(Default)]
pub struct Needles(pub Vec<Needle>);

impl Needles {
    pub fn plain(&mut self, kind: &'static str, bytes: &[u8]) {
        assert!(bytes.len() >= 16, "{kind}: a needle of {} bytes proves nothing", bytes.len());
        self.0.push(Needle { kind, bytes: bytes.to_vec() });
    }

    /// A key of 32 bytes: raw (each half by itself, so that half a wipe does not hide it), in base64 of both alphabets
    /// and all alignments, and in hexadecimal.
    pub fn key(&mut self, kind: &'static str, key: &[u8; 32]) {
        self.plain(kind, &key[..16]);
        self.plain(kind, &key[16..]);
        for shift in 0..3 {
            let mut shifted = vec![0; shift];
            shifted.extend_from_slice(key);
            let text = STANDARD.encode(&shifted);
            // Only the characters that hold nothing but bits of the key.
            let known = &text[(8 * shift).div_ceil(6)..8 * (shift + 32) / 6];
            self.plain("key in base64", known.as_bytes());
            let url = known.replace('+', "-").replace('/', "_");
            if url != known {
                self.plain("key in base64url", url.as_bytes());
            }
        }
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.plain("key in hexadecimal", hex.as_bytes());
        self.plain("key in hexadecimal", hex.to_uppercase().as_bytes());
    }

    /// The round keys of AES-256 behind the key itself, 32 bytes at a time.
    pub fn schedule(&mut self, key: &[u8; 32]) {
        for part in aes_256(key)[32..].chunks(32) {
            self.plain("AES round keys", part);
        }
    }

    /// What HMAC-SHA256 keeps of a key: the states after the inner and the outer pad.
    pub fn hmac(&mut self, key: &[u8; 32]) {
        for pad in [0x36, 0x5c] {
            let mut block = [pad; 64];
            block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
            let state = sha256_block(&block);
            let bytes: Vec<u8> = state.iter().flat_map(|word| word.to_ne_bytes()).collect();
            self.plain("HMAC state", &bytes);
        }
    }
}

/// `HKDF-Extract` with SHA-256 (RFC 5869).
pub fn extract(salt: &[u8], ikm: &[u8]) -> [u8; 32] {
    tag(salt, &[ikm])
}

/// `HKDF-Expand` with SHA-256 to 32 bytes.
pub fn expand(prk: &[u8; 32], info: &[&[u8]]) -> [u8; 32] {
    let mut parts = info.to_vec();
    parts.push(&[1]);
    tag(prk, &parts)
}

fn tag(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    context.sign().as_ref().try_into().unwrap()
}

/// The key schedule of AES-256 (FIPS 197 §5.2): 60 words.
fn aes_256(key: &[u8; 32]) -> Vec<u8> {
    let sbox = sbox();
    let mut words: Vec<[u8; 4]> = key.chunks(4).map(|word| word.try_into().unwrap()).collect();
    let mut rcon = 1_u8;
    for at in 8..60 {
        let mut word = words[at - 1];
        if at % 8 == 0 {
            word.rotate_left(1);
        }
        if at % 4 == 0 {
            word = word.map(|byte| sbox[usize::from(byte)]);
        }
        if at % 8 == 0 {
            word[0] ^= rcon;
            rcon <<= 1;
        }
        let before = words[at - 8];
        words.push([0, 1, 2, 3].map(|i| word[i] ^ before[i]));
    }
    words.concat()
}

fn sbox() -> [u8; 256] {
    let mut sbox = [0; 256];
    let (mut p, mut q) = (1_u8, 1_u8);
    loop {
        // p runs through all elements of the field as powers of 3, q through their inverses.
        p ^= (p << 1) ^ if p & 0x80 == 0 { 0 } else { 0x1b };
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        q ^= if q & 0x80 == 0 { 0 } else { 0x09 };
        sbox[usize::from(p)] = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4) ^ 0x63;
        if p == 1 {
            break;
        }
    }
    sbox[0] = 0x63;
    sbox
}

/// SHA-256's state after one block (FIPS 180-4 §6.2.2).
fn sha256_block(block: &[u8; 64]) -> [u32; 8] {
    // The constants are the fractional parts of the roots of the first primes.
    let primes: Vec<u32> = (2..312_u32).filter(|n| (2..*n).all(|d| !n.is_multiple_of(d))).take(64).collect();
    let fraction = |root: f64| ((root - root.floor()) * 4_294_967_296.0) as u32;
    let k: Vec<u32> = primes.iter().map(|prime| fraction(f64::from(*prime).cbrt())).collect();
    let start: Vec<u32> = primes[..8].iter().map(|prime| fraction(f64::from(*prime).sqrt())).collect();
    let mut w: Vec<u32> = block.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
    for t in 16..64 {
        let s0 = w[t - 15].rotate_right(7) ^ w[t - 15].rotate_right(18) ^ (w[t - 15] >> 3);
        let s1 = w[t - 2].rotate_right(17) ^ w[t - 2].rotate_right(19) ^ (w[t - 2] >> 10);
        w.push(w[t - 16].wrapping_add(s0).wrapping_add(w[t - 7]).wrapping_add(s1));
    }
    let mut v: [u32; 8] = start.clone().try_into().unwrap();
    for t in 0..64 {
        let [a, b, c, d, e, f, g, h] = v;
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let t1 = h.wrapping_add(s1).wrapping_add((e & f) ^ (!e & g)).wrapping_add(k[t]).wrapping_add(w[t]);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
        v = [t1.wrapping_add(t2), a, b, c, d.wrapping_add(t1), e, f, g];
    }
    let mut out = [0; 8];
    out.iter_mut().zip(v.iter().zip(start)).for_each(|(out, (v, start))| *out = v.wrapping_add(start));
    out
}

/// The helpers themselves against published vectors: a needle that is computed wrongly would never be found.
#[test]
fn the_needles_are_right() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // FIPS 197 A.3: w8…w15 and the last word.
    let key: [u8; 32] = [
        0x60, 0x3d, 0xeb, 0x10, 0x15, 0xca, 0x71, 0xbe, 0x2b, 0x73, 0xae, 0xf0, 0x85, 0x7d, 0x77, 0x81, 0x1f, 0x35,
        0x2c, 0x07, 0x3b, 0x61, 0x08, 0xd7, 0x2d, 0x98, 0x10, 0xa3, 0x09, 0x14, 0xdf, 0xf4,
    ];
    let schedule = aes_256(&key);
    assert_eq!(hex(&schedule[32..64]), "9ba354118e6925afa51a8b5f2067fcdea8b09c1a93d194cdbe49846eb75d5b9a");
    assert_eq!(hex(&schedule[236..]), "706c631e");
    // FIPS 180-4: "abc", padded by hand.
    let mut block = [0; 64];
    block[..4].copy_from_slice(b"abc\x80");
    block[63] = 24;
    let digest: Vec<u8> = sha256_block(&block).iter().flat_map(|word| word.to_be_bytes()).collect();
    assert_eq!(hex(&digest), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    // Every form of a key is found in a text that holds it, at every alignment.
    for shift in 0..3_usize {
        let mut text = vec![7; shift];
        text.extend_from_slice(&key);
        text.extend_from_slice(&[9; 5]);
        let text = STANDARD.encode(text);
        let mut needles = Needles::default();
        needles.key("raw", &key);
        let found =
            needles.0.iter().any(|n| n.kind == "key in base64" && text.contains(str::from_utf8(&n.bytes).unwrap()));
        assert!(found, "alignment {shift}");
    }
}
