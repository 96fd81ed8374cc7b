//! Processes that never outlive their test, and what tests ask the operating system for.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A port nobody listens on now, outside Linux's ephemeral range so that no outgoing connection takes
/// it in between. Another process may still be faster: callers retry on "address already in use".
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// User plus system CPU time a process has used so far, all its threads included. The unit of
/// /proc is the tick, 10 ms on Linux.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The second field is the program's name in parentheses and may hold spaces.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("rsplit yields one")
        .split(' ')
        .collect();
    let ticks: u64 = [12, 13]
        .iter()
        .map(|&i| fields[i].parse::<u64>().expect("ticks"))
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Memory of a process: resident now, and at the most so far, in kB.
///
/// # Panics
/// If there is no such process.
pub fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let [now, most] = ["VmRSS:", "VmHWM:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|kb| kb.parse().ok()).expect("kB")
    });
    (now, most)
}

/// A command for a daemon, in a session of its own as a service manager would start it. In the session
/// of its load generator it would share that one's part of the CPU (Linux schedules by session:
/// `sched_autogroup_enabled`), and be measured at the worse for it.
pub(crate) fn daemon(program: impl AsRef<OsStr>) -> Command {
    // A child of ours leads no process group, so setsid needs no fork: the process id stays.
    let mut command = Command::new("setsid");
    command.arg(program);
    command
}

/// Sends a signal (`KILL`, `TERM`, `INT`, `STOP` …). A process that is gone is no error.
pub(crate) fn signal(pid: u32, signal: &str) {
    let _ = Command::new("sh")
        .args(["-c", &format!("kill -s {signal} {pid}")])
        .stderr(Stdio::null())
        .status();
}

/// The processes whose parent is `pid`.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(child) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split(' ').nth(2)?.parse::<u32>().ok());
        parents.insert(child, parent);
    }
    parents
        .into_iter()
        .filter(|&(_, parent)| parent == Some(pid))
        .map(|(child, _)| child)
        .collect()
}

/// Waits up to `limit` for a child to end by itself.
pub(crate) fn wait_for_exit(
    child: &mut Child,
    limit: Duration,
) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A temporary directory and the process that works in it, both gone when this process is gone,
/// however it went: a shell waits on a pipe that the kernel closes. Needed for tests that are killed,
/// and for servers kept in statics, which Rust never drops.
pub(crate) struct Workplace {
    path: PathBuf,
    watchdog: Child,
}

impl Workplace {
    /// A new directory that every user may enter. Its path is short: that of a Unix socket in it may
    /// have 107 bytes.
    pub(crate) fn new(kind: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "pgcat-{kind}-{}-{count}-{:06x}",
            std::process::id(),
            rand::random::<u32>() >> 8
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Ctrl-C goes to the whole foreground process group: the watchdog must survive it.
        let script = r#"trap '' INT TERM HUP; pid=
            while read -r line; do
                case $line in done) exit 0 ;; *) pid=$line ;; esac
            done
            if [ -n "$pid" ]; then
                kill -s INT "$pid" 2>/dev/null; n=0
                while kill -0 "$pid" 2>/dev/null && [ $n -lt 50 ]; do sleep 0.1; n=$((n+1)); done
                kill -s KILL "$pid" 2>/dev/null
            fi
            rm -rf "$1""#;
        let watchdog = Command::new("sh")
            .args(["-c", script, "watchdog"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        Self { path, watchdog }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Names the process to end, instead of an earlier one.
    pub(crate) fn watch(&mut self, pid: u32) {
        self.tell(&pid.to_string());
    }

    /// The watched process has ended: its id may soon be another's.
    pub(crate) fn unwatch(&mut self) {
        self.tell("");
    }

    fn tell(&mut self, line: &str) {
        let pipe = self.watchdog.stdin.as_mut().expect("piped");
        writeln!(pipe, "{line}").expect("the watchdog reads until the pipe closes");
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        self.tell("done");
        let _ = self.watchdog.wait();
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// User and group id of the account servers run under. PostgreSQL refuses to run as root; for any
/// other user there is nothing to change.
pub(crate) fn unprivileged_user() -> Option<(u32, u32)> {
    if effective_user() != 0 {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    ["postgres", "nobody"].iter().find_map(|name| {
        let fields: Vec<&str> = passwd
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))?
            .split(':')
            .collect();
        Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    })
}

fn effective_user() -> u32 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("Uid:")?
                .split_whitespace()
                .nth(1)?
                .parse()
                .ok()
        })
        .expect("a Uid line")
}
