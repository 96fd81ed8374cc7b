//! `pgcat`: the pooler with its plugins.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use pgcat::Start;
use pgcat::config::{self, model::Config};
use pgcat::plugins::Plugin;
use stream_tables::StreamTables;

mod check;
mod cli;
mod import;
mod logging;

/// EX_CONFIG of sysexits.h, as PgCat exits when it cannot start.
const CANNOT_START: u8 = 78;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    match &args.command {
        None => serve_logging(&args),
        Some(cli::Command::Check { config_file }) => exit(check_file(config_file)),
        Some(cli::Command::Import(import)) => exit(import::run(import)),
    }
}

fn serve_logging(args: &cli::Args) -> ExitCode {
    let color = args.color(std::env::var_os("NO_COLOR").as_deref());
    let filters = std::env::var("RUST_LOG").ok();
    logging::init(args.log_level, args.log_format, color, filters.as_deref());

    exit(serve(args))
}

fn exit(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Also where it is seen when the log goes to a file.
            eprintln!("pgcat: {message}");
            ExitCode::from(CANNOT_START)
        }
    }
}

fn check_file(path: &Path) -> Result<(), String> {
    let (_, warnings) = check::all(config::load(path, &plugins()))?;
    for warning in warnings {
        eprintln!("{warning}");
    }
    println!("{} is valid", path.display());
    Ok(())
}

fn serve(args: &cli::Args) -> Result<(), String> {
    log::info!("Welcome to pgcat (version {})", env!("CARGO_PKG_VERSION"));
    let config = load(&args.config_file)
        .inspect_err(|message| log::error!(target: "pgcat::config", "{message}"))?;
    for (name, pool) in &config.pools {
        let users: Vec<_> = pool
            .users
            .iter()
            .chain(&pool.other_users)
            .map(|user| format!("{} ({})", user.username, user.pool_size))
            .collect();
        log::info!("Pool {name}: users (pool_size) {}", users.join(", "));
    }
    let file = args.config_file.clone();
    let reload = Box::new(move || load(&file));
    let start = if args.takeover {
        Start::TakeOver
    } else {
        Start::Fresh
    };
    pgcat::run(config, plugins(), reload, start).map_err(|error| {
        log::error!("{error}");
        error.to_string()
    })
}

fn plugins() -> Vec<Arc<dyn Plugin>> {
    vec![Arc::new(StreamTables::new())]
}

fn load(file: &Path) -> Result<Config, String> {
    let (config, warnings) = config::load(file, &plugins()).map_err(|error| error.to_string())?;
    for warning in warnings {
        log::warn!(target: "pgcat::config", "{warning}");
    }
    Ok(config)
}
