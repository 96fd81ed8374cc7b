//! The binary's arguments, exit codes and log formats. Nothing here gets as far as serving.

use std::path::PathBuf;
use std::process::{Command, Output};

/// A configuration file that is removed in the end.
struct File(PathBuf);

impl File {
    /// The example configuration, with one line replaced.
    fn with(name: &str, from: &str, to: &str) -> Self {
        let example = include_str!("../pgcat.toml");
        assert!(example.contains(from), "{from}");
        let name = format!("pgcat-{}-{name}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, example.replacen(from, to, 1)).expect("a temporary file");
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn pgcat() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgcat"));
    for name in [
        "CONFIG_FILE",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "NO_COLOR",
        "RUST_LOG",
    ] {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn the_version_is_one_line() {
    let (code, stdout, _) = run(pgcat().arg("-V"));
    assert_eq!(
        (code, stdout),
        (Some(0), format!("pgcat {}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn a_missing_file_ends_the_start_with_78() {
    let (code, stdout, stderr) = run(pgcat().arg("/nowhere/pgcat.toml"));
    let message = "Could not open '/nowhere/pgcat.toml': No such file or directory (os error 2)";
    assert_eq!(code, Some(78));
    assert!(
        stdout.contains(&format!("ERROR ThreadId(01) pgcat::config: {message}\n")),
        "{stdout}"
    );
    assert_eq!(stderr, format!("pgcat: {message}\n"));
}

#[test]
fn a_wrong_value_ends_the_start_with_78_and_its_line() {
    let file = File::with("value", "pool_size = 10", "pool_size = \"ten\"");
    let (code, _, stderr) = run(pgcat().env("CONFIG_FILE", &file.0));
    assert_eq!(code, Some(78));
    let message =
        "pools.demo.users.0.pool_size: expected an integer from 1 to 4294967295, found \"ten\"\n";
    assert!(stderr.ends_with(message), "{stderr}");
    assert!(stderr.contains(".toml:"), "{stderr}");
}

#[test]
fn a_wrong_value_of_a_plugin_ends_the_start_with_78_and_its_line() {
    let file = File::with("plugin", "schedule = \"live\"", "schedule = \"often\"");
    let (code, _, stderr) = run(pgcat().arg(&file.0));
    assert_eq!(code, Some(78));
    let line = include_str!("../pgcat.toml")
        .lines()
        .position(|line| line.starts_with("schedule"))
        .expect("the example sets a schedule");
    let start = format!(
        "pgcat: {}:{}: plugins.stream_tables.schedule: ",
        file.0.display(),
        line + 1
    );
    assert!(stderr.starts_with(&start), "{stderr}");
}

#[test]
fn a_structured_log_is_json_line_by_line() {
    let (_, stdout, _) = run(pgcat().args(["-F", "structured", "/nowhere"]));
    let levels: Vec<_> = stdout
        .lines()
        .map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(entry["timestamp"].is_string() && entry["target"].is_string());
            assert!(entry["fields"]["message"].is_string());
            entry["level"].as_str().expect("a level").to_owned()
        })
        .collect();
    assert_eq!(levels, ["INFO", "ERROR"]);
}

#[test]
fn rust_log_wins_over_the_level() {
    let lines = |command: &mut Command| run(command.arg("/nowhere")).1.lines().count();
    assert_eq!(lines(&mut pgcat()), 2);
    assert_eq!(lines(pgcat().args(["-l", "error"])), 1);
    assert_eq!(lines(pgcat().env("LOG_LEVEL", "ERROR")), 1);
    assert_eq!(
        lines(pgcat().args(["-l", "error"]).env("RUST_LOG", "info")),
        2
    );
    assert_eq!(lines(pgcat().env("RUST_LOG", "off")), 0);
}
