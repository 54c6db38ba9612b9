//! Sealed pages: where each plaintext byte of a file lies, and how one page is sealed and opened.
//!
//! ```text
//! page k ≥ 1 (4096 B) = seal 40 | ciphertext ≤ 4056 | zeros
//! page 0     (4096 B) = file header | seal 40 | sealed { floor 8 | flags 8 | data } | zeros
//! seal       (40 B)   = epoch 8 | nonce 12 | tag 16 | length 2 | flags 2
//! ```
//!
//! All integers are little-endian. `length` counts the sealed bytes (in page 0 with floor and flags); what follows them
//! up to the end of the page is zero, and a page where it is not is refused, so no byte of a page is free to carry
//! anything. `flags` of the seal are 0 in this format; others are refused. The additional authenticated data is page
//! index 8 | length 2 | flags 2, so a page opens at its own place only. A page of 4096 zeros is a hole.
//!
//! A page's key is `HKDF-SHA256(ikm = file key ‖ mixing key, salt = file id, info = label ‖ format version ‖ volume id ‖
//! suite ‖ epoch)` (RFC 5869): another volume, suite or format version gives another key, and the page does not open.
//! An epoch is 64 random bits, drawn for every [`PageKeys`] and again after 2³¹ seals; nonces are 96 random bits.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::hkdf;
use lru::LruCache;
use zeroize::Zeroizing;

use super::{FileId, VolumeId};
use crate::crypto::Secret;
use crate::crypto::suite::{CipherError, KEY_LEN, NONCE_LEN, PageCipher, Suite, TAG_LEN};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Bytes of a seal.
pub const SEAL: usize = 40;
/// Plaintext bytes that a page other than the first holds.
pub const CAP: usize = PAGE - SEAL;
/// Sealed bytes of page 0 that are not data: the floor and its flags.
pub const PREFIX: usize = 16;
/// The format version in the key derivation.
pub const FORMAT_VERSION: u8 = 1;
/// Page 0's flag: a page below the floor may be a hole, or shorter than its place.
pub const SPARSE: u64 = 1;

const LABEL: &[u8] = b"hyokfs page key";
const TAG_AT: usize = 20;
const LENGTH_AT: usize = 36;
/// Ciphers kept per open file, by epoch.
const CIPHERS: NonZeroUsize = NonZeroUsize::new(16).unwrap();
/// Seals under one epoch. With random 96-bit nonces a collision's chance then stays below 2⁻³³.
const SEALS_PER_EPOCH: u64 = 1 << 31;
/// Nonces drawn at once: enough for a request of 1 MiB.
const NONCES: usize = 264;

/// A file header may be 1024, 2048 or 3072 bytes long, the same in a whole volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a file header is 1024, 2048 or 3072 bytes long, not {0}: is hyokfs.toml damaged, or of a newer version?")]
pub struct BadHeaderLen(pub usize);

/// Where plaintext lies in a file of this volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    header: u16,
}

impl Geometry {
    /// The geometry of files with a header of `header_len` bytes.
    pub const fn new(header_len: usize) -> Result<Self, BadHeaderLen> {
        match header_len {
            1024 | 2048 | 3072 => Ok(Geometry { header: header_len as u16 }),
            other => Err(BadHeaderLen(other)),
        }
    }

    /// Bytes of the header at the start of page 0.
    pub const fn header_len(self) -> usize {
        self.header as usize
    }

    /// Plaintext bytes that page `index` holds.
    pub const fn cap(self, index: u64) -> usize {
        if index == 0 { CAP - PREFIX - self.header as usize } else { CAP }
    }

    /// Where the seal stands in page `index`: what lies before it (the header) is not sealed.
    pub const fn seal_at(self, index: u64) -> usize {
        if index == 0 { self.header as usize } else { 0 }
    }

    /// Bytes sealed before the data of page `index`.
    pub const fn prefix(self, index: u64) -> usize {
        if index == 0 { PREFIX } else { 0 }
    }

    /// The offset of the first plaintext byte of page `index`; saturates at the end of the number range.
    pub const fn start(self, index: u64) -> u64 {
        match index {
            0 => 0,
            _ => (index - 1).saturating_mul(CAP as u64).saturating_add(self.cap(0) as u64),
        }
    }

    /// The page that holds the plaintext byte at `off`.
    pub const fn page_of(self, off: u64) -> u64 {
        let first = self.cap(0) as u64;
        if off < first { 0 } else { 1 + (off - first) / CAP as u64 }
    }

    /// How many pages a file of `size` plaintext bytes has: at least one.
    pub const fn pages(self, size: u64) -> u64 {
        if size == 0 { 1 } else { self.page_of(size - 1) + 1 }
    }

    /// How many plaintext bytes the last page of a file of `size` bytes holds: the length of its size tail.
    pub const fn tail(self, size: u64) -> u64 {
        size - self.start(self.pages(size) - 1)
    }

    /// The length of the ciphertext file of `size` plaintext bytes, or `None` where no file can be as long.
    pub const fn cipher_len(self, size: u64) -> Option<u64> {
        match self.pages(size).checked_mul(PAGE as u64) {
            Some(pages) => match pages.checked_add(self.tail(size)) {
                Some(len) if len <= i64::MAX as u64 => Some(len),
                _ => None,
            },
            None => None,
        }
    }

    /// The plaintext size that a ciphertext file of `cipher_len` bytes tells, or `None` where it is shorter than a page
    /// (an interrupted creation). A tail over the last page's capacity is clamped.
    pub const fn plain_size(self, cipher_len: u64) -> Option<u64> {
        match cipher_len / PAGE as u64 {
            0 => None,
            pages => {
                let (tail, cap) = (cipher_len % PAGE as u64, self.cap(pages - 1) as u64);
                Some(self.start(pages - 1) + if tail < cap { tail } else { cap })
            }
        }
    }

    /// Whether the size tail of a ciphertext file of `cipher_len` bytes is one that can have been written.
    pub const fn tail_is_valid(self, cipher_len: u64) -> bool {
        match cipher_len / PAGE as u64 {
            0 => false,
            pages => cipher_len % PAGE as u64 <= self.cap(pages - 1) as u64,
        }
    }
}

/// Why a page did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The seal is zero, the page is not.
    #[error("its seal is zero although the page is not empty")]
    NoSeal,
    /// The length field says more than the page can hold, or (page 0) less than it must.
    #[error("its length field is out of range")]
    Length,
    /// A flag that this version doesn't know.
    #[error("it carries flags that this version does not know")]
    Flags,
    /// Something stands where zeros belong.
    #[error("the space after its data is not zero")]
    Padding,
    /// The tag doesn't fit: other bytes, another place, file, volume or suite than was sealed.
    #[error("it fails authentication")]
    Forged,
    /// Its key could not be derived.
    #[error("its key could not be derived")]
    Key,
}

/// Whether `page`, or what there is of it, is a hole.
pub fn is_hole(page: &[u8]) -> bool {
    // The first bytes of a page are its epoch or the file header's magic, so almost every page is told here.
    page.iter().take(8).all(|b| *b == 0) && is_zero(page)
}

/// Whether all bytes are zero, by comparison with memory that is: as fast as `memcmp`.
fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    bytes.chunks(PAGE).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// The sealed length that a page claims, without a proof; `slot` starts at the seal. 0 for a hole.
pub fn claimed_len(slot: &[u8]) -> usize {
    slot.get(LENGTH_AT..LENGTH_AT + 2).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])))
}

fn aad(index: u64, length: u16, flags: u16) -> [u8; 12] {
    let mut aad = [0; 12];
    aad[..8].copy_from_slice(&index.to_le_bytes());
    aad[8..10].copy_from_slice(&length.to_le_bytes());
    aad[10..].copy_from_slice(&flags.to_le_bytes());
    aad
}

/// The keys of one open file. They lie outside the arena: dropping this wipes them.
pub struct PageKeys {
    suite: Suite,
    volume: VolumeId,
    prk: hkdf::Prk,
    ciphers: Mutex<LruCache<u64, Arc<PageCipher>>>,
    writer: Mutex<(u64, Arc<PageCipher>)>,
    seals: AtomicU64,
}

impl fmt::Debug for PageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageKeys")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks leaves a half-made state behind, so a panic elsewhere does not matter.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PageKeys {
    /// Prepares the keys of `file` and draws the epoch that its pages will be sealed under.
    pub fn new(
        suite: Suite,
        file_key: &Secret,
        mixing: &Secret,
        volume: &VolumeId,
        file: &FileId,
    ) -> Result<Self, CipherError> {
        let mut ikm = Zeroizing::new([0; 2 * KEY_LEN]);
        ikm[..KEY_LEN].copy_from_slice(file_key.expose());
        ikm[KEY_LEN..].copy_from_slice(mixing.expose());
        // Looked at afterwards: a lock may wipe the keys while they are copied, and what is sealed under zeros is lost.
        if file_key.is_wiped() || mixing.is_wiped() {
            return Err(CipherError);
        }
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, file.as_bytes()).extract(ikm.as_ref());
        let epoch = random_epoch()?;
        let cipher = Arc::new(derive(suite, &prk, volume, epoch)?);
        let mut ciphers = LruCache::new(CIPHERS);
        ciphers.put(epoch, Arc::clone(&cipher));
        Ok(PageKeys {
            suite,
            volume: *volume,
            prk,
            ciphers: Mutex::new(ciphers),
            writer: Mutex::new((epoch, cipher)),
            seals: AtomicU64::new(0),
        })
    }

    fn cipher(&self, epoch: u64) -> Result<Arc<PageCipher>, CipherError> {
        if let Some(cipher) = lock(&self.ciphers).get(&epoch) {
            return Ok(Arc::clone(cipher));
        }
        let cipher = Arc::new(derive(self.suite, &self.prk, &self.volume, epoch)?);
        lock(&self.ciphers).put(epoch, Arc::clone(&cipher));
        Ok(cipher)
    }

    /// Prepares to seal about `pages` pages for one request.
    pub fn sealer(&self, pages: usize) -> Result<Sealer, CipherError> {
        let before = self.seals.fetch_add(pages as u64, Ordering::Relaxed);
        let mut writer = lock(&self.writer);
        if before + pages as u64 > SEALS_PER_EPOCH {
            let epoch = random_epoch()?;
            *writer = (epoch, Arc::new(derive(self.suite, &self.prk, &self.volume, epoch)?));
            lock(&self.ciphers).put(epoch, Arc::clone(&writer.1));
            self.seals.store(pages as u64, Ordering::Relaxed);
        }
        let mut sealer = Sealer {
            epoch: writer.0,
            cipher: Arc::clone(&writer.1),
            nonces: [[0; NONCE_LEN]; NONCES],
            next: 0,
            drawn: 0,
        };
        drop(writer);
        sealer.draw(pages)?;
        Ok(sealer)
    }

    /// Prepares to open pages for one request.
    pub fn opener(&self) -> Opener<'_> {
        Opener { keys: self, last: None }
    }
}

fn random_epoch() -> Result<u64, CipherError> {
    loop {
        let mut epoch = [0; 8];
        aws_lc_rs::rand::fill(&mut epoch)?;
        // 0 would make the start of a sealed page look like a hole.
        if epoch != [0; 8] {
            return Ok(u64::from_le_bytes(epoch));
        }
    }
}

struct PageKeyLen;

impl hkdf::KeyType for PageKeyLen {
    fn len(&self) -> usize {
        KEY_LEN
    }
}

fn derive(suite: Suite, prk: &hkdf::Prk, volume: &VolumeId, epoch: u64) -> Result<PageCipher, CipherError> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    let (version, code, epoch) = ([FORMAT_VERSION], [suite.code()], epoch.to_le_bytes());
    // Every part but the label has a fixed length, and the label is constant: no two inputs can collide.
    let info: [&[u8]; 5] = [LABEL, &version, volume.as_bytes(), &code, &epoch];
    prk.expand(&info, PageKeyLen)?.fill(key.as_mut())?;
    PageCipher::new(suite, &key)
}

/// Seals the pages of one request under the current epoch. Its nonces are drawn for this request and go with it.
pub struct Sealer {
    epoch: u64,
    cipher: Arc<PageCipher>,
    nonces: [[u8; NONCE_LEN]; NONCES],
    next: usize,
    drawn: usize,
}

impl Sealer {
    fn draw(&mut self, pages: usize) -> Result<(), CipherError> {
        self.drawn = pages.clamp(1, NONCES);
        self.next = 0;
        Ok(aws_lc_rs::rand::fill(self.nonces[..self.drawn].as_flattened_mut())?)
    }

    /// Seals `plain` as page `index` into `slot`: the page from its seal to its end. Writes every byte of `slot`.
    pub fn seal(&mut self, index: u64, plain: &[u8], slot: &mut [u8]) -> Result<(), CipherError> {
        if slot.len() < SEAL || plain.len() > slot.len() - SEAL {
            return Err(CipherError);
        }
        if self.next == self.drawn {
            self.draw(NONCES)?;
        }
        let nonce = self.nonces[self.next];
        self.next += 1;
        let length = u16::try_from(plain.len()).map_err(|_| CipherError)?;
        let (seal, rest) = slot.split_at_mut(SEAL);
        let (cipher, padding) = rest.split_at_mut(plain.len());
        let tag: &mut [u8; TAG_LEN] = (&mut seal[TAG_AT..LENGTH_AT]).try_into().map_err(|_| CipherError)?;
        self.cipher.seal(nonce, &aad(index, length, 0), plain, cipher, tag)?;
        padding.fill(0);
        seal[..8].copy_from_slice(&self.epoch.to_le_bytes());
        seal[8..TAG_AT].copy_from_slice(&nonce);
        seal[LENGTH_AT..LENGTH_AT + 2].copy_from_slice(&length.to_le_bytes());
        seal[LENGTH_AT + 2..].copy_from_slice(&[0; 2]);
        Ok(())
    }
}

/// Opens the pages of one request; remembers the last epoch's cipher.
pub struct Opener<'a> {
    keys: &'a PageKeys,
    last: Option<(u64, Arc<PageCipher>)>,
}

impl Opener<'_> {
    /// Opens page `index` from `slot` (the page from its seal to its end) into the start of `plain`, which must have
    /// room for [`claimed_len`] bytes; gives the length. After an error `plain` holds nothing of the page.
    pub fn open(&mut self, index: u64, slot: &[u8], plain: &mut [u8]) -> Result<usize, PageError> {
        if slot.len() < SEAL {
            return Err(PageError::Length);
        }
        let (seal, rest) = slot.split_at(SEAL);
        if is_zero(seal) {
            return Err(PageError::NoSeal);
        }
        let length = claimed_len(seal);
        if length > rest.len() || length > plain.len() {
            return Err(PageError::Length);
        }
        if seal[LENGTH_AT + 2..] != [0; 2] {
            return Err(PageError::Flags);
        }
        let (cipher, padding) = rest.split_at(length);
        if !is_zero(padding) {
            return Err(PageError::Padding);
        }
        let epoch = u64::from_le_bytes(seal[..8].try_into().map_err(|_| PageError::Length)?);
        let nonce: [u8; NONCE_LEN] = seal[8..TAG_AT].try_into().map_err(|_| PageError::Length)?;
        let tag: &[u8; TAG_LEN] = seal[TAG_AT..LENGTH_AT].try_into().map_err(|_| PageError::Length)?;
        let keyed = match self.last.take() {
            Some(last) if last.0 == epoch => last,
            _ => (epoch, self.keys.cipher(epoch).map_err(|CipherError| PageError::Key)?),
        };
        let (_, page_cipher) = self.last.insert(keyed);
        let plain = &mut plain[..length];
        page_cipher.open(nonce, &aad(index, length as u16, 0), cipher, tag, plain).map_err(|CipherError| {
            plain.fill(0);
            PageError::Forged
        })?;
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
