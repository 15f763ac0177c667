//! Tests of the whole transform.
