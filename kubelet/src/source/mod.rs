//! Where pods come from: the apiserver and files.

pub mod files;
pub mod mirror;
pub mod parse;
