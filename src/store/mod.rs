//! Descriptors inside the store directory.
