//! `pgcat import`: PgBouncer's configuration as one of ours.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pgcat::config;
use pgcat::config::pgbouncer::{self, Request};

use crate::check;
use crate::cli::Import;

/// Writes the result, and on standard error what is different with it.
///
/// # Errors
/// What is wrong with PgBouncer's files, or that the result is none that pgcat starts with: it is
/// written even so, because certificates may be missing on this machine only.
pub fn run(arguments: &Import) -> Result<(), String> {
    let request = Request {
        path: &arguments.pgbouncer_ini,
        databases: &arguments.databases,
        users: &arguments.users,
    };
    let imported = pgbouncer::import(request).map_err(|error| error.to_string())?;
    let name = arguments.output.clone();
    let name = name.unwrap_or_else(|| PathBuf::from("pgcat.toml"));
    let written = match &arguments.output {
        Some(path) => write_new(path, &imported.text),
        None => io::stdout().write_all(imported.text.as_bytes()),
    };
    written.map_err(|error| format!("{}: {error}", name.display()))?;

    let checked = check::all(config::parse(&imported.text, &name, &crate::plugins()));
    let (notes, outcome) = match checked {
        Ok((_, warnings)) => ([imported.notes, warnings].concat(), Ok(())),
        Err(reason) => {
            let message = format!("pgcat does not start with the result as it is: {reason}");
            (imported.notes, Err(message))
        }
    };
    for note in notes {
        eprintln!("{note}");
    }
    outcome
}

/// A file with passwords is for its owner only, and nobody's configuration is overwritten.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}
