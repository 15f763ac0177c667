//! Commented JSON.
