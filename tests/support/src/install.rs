//! Where the PostgreSQL programs are that `scripts/setup` has provided.

use std::env;
use std::path::{Path, PathBuf};

/// The majors tests run on: `PGCAT_TEST_MAJORS` (e.g. `"15 18"`), else all of 14 to 18.
pub fn majors() -> Vec<u32> {
    let list = env::var("PGCAT_TEST_MAJORS").unwrap_or_else(|_| "14 15 16 17 18".to_owned());
    let majors: Vec<u32> = list
        .split([' ', ','])
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse()
                .unwrap_or_else(|_| panic!("PGCAT_TEST_MAJORS: {part:?}"))
        })
        .collect();
    assert!(!majors.is_empty(), "PGCAT_TEST_MAJORS names no major");
    majors
}

/// The directory of `postgres` and `initdb` of a major: Debian's, else the one from the cache.
pub fn bin_dir(major: u32) -> PathBuf {
    let debian = debian_bin(major);
    if debian.join("postgres").exists() {
        return debian;
    }
    let bin = cache().join(major.to_string()).join("native/bin");
    assert!(
        bin.join("postgres").exists(),
        "PostgreSQL {major} is in neither {} nor {}; run scripts/setup",
        debian.display(),
        bin.display()
    );
    // The unprivileged server user must reach it even where the cache is a symbolic link.
    bin.canonicalize().expect("the directory was just seen")
}

/// A client program such as `psql`, `pg_dump` or `pgbench`, of the newest major Debian has installed.
pub fn client_program(name: &str) -> PathBuf {
    (14..=30)
        .rev()
        .map(|major| debian_bin(major).join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

fn debian_bin(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))
}

fn cache() -> PathBuf {
    match env::var_os("PGCAT_PG_CACHE") {
        Some(cache) => cache.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.pg"),
    }
}
