//! The real `outrider`, driven as a user would: against a fake control plane on a real socket, and on real files.
#![expect(clippy::unwrap_used, reason = "clippy knows test functions, not what they call")]

mod fake;
mod files;
mod lists;
mod trial;
mod trust;
mod verbs;
