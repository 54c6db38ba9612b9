//! Plaintext bytes over sealed pages.
