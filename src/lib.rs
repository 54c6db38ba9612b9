//! **hyokfs** ("hold your own key filesystem"): a FUSE daemon that mounts an encrypted-at-rest directory whose
//! per-file keys are wrapped by a key that the *customer* holds in AWS KMS or Azure Key Vault.
//!
//! The modules below stand in rank order: a module uses only those above it, and `tests/layering.rs` enforces it.
//!
//! | rank | module | duty |
//! |---|---|---|
//! | 0 | [`sys`] | raw system calls and all `unsafe`: locked memory, process hardening, mounting |
//! | 1 | [`crypto`] | ciphers, key derivation, secrets in locked memory |
//! | 1 | [`audit`] | the hash-chained log of key calls and state changes |
//! | 2 | [`mod@format`] | on-disk bytes: header, sealed page, names, volume record; pure, no I/O |
//! | 3 | [`store`] | descriptors inside the store directory, the lock file, the disk trait |
//! | 3 | [`provider`] | the key services and their verdicts |
//! | 4 | [`mod@file`] | plaintext bytes over sealed pages |
//! | 4 | [`keyring`] | unwrapped keys; the only bridge between threads and the async key side |
//! | 4 | [`liveness`] | polls the customer's key |
//! | 5 | [`fs`] | POSIX semantics over inodes, dentries and handles; knows no FUSE types |
//! | 5 | [`verify`] | authenticates a whole store that is not mounted, and mends it |
//! | 6 | [`fuse`] | the kernel's requests, decoded and answered |
//! | 7 | [`supervisor`] | the state machine; alone mounts, locks and unmounts |
//! | 8 | [`cli`] | the command line |

pub mod sys;

pub mod audit;
pub mod crypto;

pub mod format;

pub mod provider;
pub mod store;

pub mod file;
pub mod keyring;
pub mod liveness;

pub mod fs;
pub mod verify;

pub mod fuse;

pub mod supervisor;

pub mod cli;
