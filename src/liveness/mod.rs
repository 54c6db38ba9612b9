//! Polls the customer's key.
