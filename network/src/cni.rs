//! CNI plugins.

use std::io;
use std::path::PathBuf;

/// Why plugins could not do their work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CniError {
    /// A configuration that is none.
    #[error("CNI configuration {file}: {why}")]
    Config {
        /// Where it stands.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A plugin that is nowhere.
    #[error("CNI plugin {plugin:?} is in none of {directories:?}")]
    NoPlugin {
        /// Its type.
        plugin: String,
        /// Where it was looked for.
        directories: Vec<PathBuf>,
    },
    /// A plugin that could not be run.
    #[error("run CNI plugin {plugin:?} ({command})")]
    Run {
        /// Its type.
        plugin: String,
        /// What it was to do.
        command: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A plugin that reported an error.
    #[error("CNI plugin {plugin:?} ({command}) failed with code {code}: {message}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// What it was to do.
        command: &'static str,
        /// The code: below 100 by the specification, else the plugin's own.
        code: u64,
        /// The message, with its details.
        message: String,
    },
    /// A plugin whose output is no CNI result.
    #[error("read the result of CNI plugin {plugin:?} ({command})")]
    Result {
        /// Its type.
        plugin: String,
        /// What it was to do.
        command: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A cached result that cannot be kept or read.
    #[error("{step} {path}")]
    Cache {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}
