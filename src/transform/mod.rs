//! The transform: one record in, one line out.
