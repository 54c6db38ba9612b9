//! The hash-chained log of key calls and state changes.
