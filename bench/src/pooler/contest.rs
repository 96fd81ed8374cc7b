//! pgbench against our pooler, PgBouncer, and the server itself, in turn.

use std::fs;
use std::time::Duration;

use test_support::{PgBouncer, Pooler, Postgres, Psql, cpu_time};

use crate::plan::Plan;
use crate::report::{Table, median_of, ratio};

/// Two poolers before one server.
pub struct Contest<'a> {
    plan: &'a Plan,
    server: &'a Postgres,
    ours: &'a Pooler,
    theirs: &'a PgBouncer,
}

/// What pgbench does.
pub struct Load {
    name: String,
    clients: u32,
    protocol: String,
    arguments: Vec<String>,
    /// In place of `-S`.
    script: Option<&'static str>,
    tls: bool,
}

impl Load {
    /// `SELECT` of one row by 16 clients.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            clients: 16,
            protocol: "simple".to_owned(),
            arguments: Vec::new(),
            script: None,
            tls: false,
        }
    }

    fn clients(mut self, clients: u32) -> Self {
        self.clients = clients;
        self
    }

    fn protocol(mut self, protocol: &str) -> Self {
        protocol.clone_into(&mut self.protocol);
        self
    }

    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    pub fn script(mut self, script: &'static str) -> Self {
        self.script = Some(script);
        self
    }

    /// Towards a pooler.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }
}

/// What one run of pgbench did.
struct Run {
    tps: f64,
    /// µs of the pooler per transaction.
    cpu: f64,
}

impl<'a> Contest<'a> {
    pub fn new(
        plan: &'a Plan,
        server: &'a Postgres,
        ours: &'a Pooler,
        theirs: &'a PgBouncer,
    ) -> Self {
        Self {
            plan,
            server,
            ours,
            theirs,
        }
    }

    /// `SELECT` of one row by 1 to many clients.
    pub fn over_clients(&self, title: &str, protocol: &str) {
        let clients = self.plan.clients.iter();
        let loads: Vec<_> = clients
            .map(|&n| Load::new(n.to_string()).clients(n).protocol(protocol))
            .collect();
        self.table(title, "clients", &loads);
    }

    pub fn table(&self, title: &str, first: &str, loads: &[Load]) {
        let mut table = Table::new(
            title,
            &[
                first,
                "pgcat µs/tx",
                "PgBouncer µs/tx",
                "CPU",
                "pgcat tps",
                "PgBouncer tps",
                "throughput",
                "direct tps",
            ],
        );
        for load in loads {
            let (mut a, mut b, mut direct) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..self.plan.pgbench_repetitions {
                // In turn, so that whatever else the machine does hits all alike.
                a.push(self.run(load, self.ours.port(), Some(self.ours.pid())));
                b.push(self.run(load, self.theirs.port(), Some(self.theirs.pid())));
                direct.push(self.run(load, self.server.port(), None));
            }
            let tps = |runs: &[Run]| median_of(&runs.iter().map(|run| run.tps).collect::<Vec<_>>());
            let cpu = |runs: &[Run]| median_of(&runs.iter().map(|run| run.cpu).collect::<Vec<_>>());
            table.row(&[
                load.name.clone(),
                format!("{:.1}", cpu(&a)),
                format!("{:.1}", cpu(&b)),
                ratio(cpu(&a), cpu(&b)),
                format!("{:.0}", tps(&a)),
                format!("{:.0}", tps(&b)),
                ratio(tps(&a), tps(&b)),
                format!("{:.0}", tps(&direct)),
            ]);
        }
        table.print();
    }

    fn run(&self, load: &Load, port: u16, pooler: Option<u32>) -> Run {
        let mut psql = Psql::new("127.0.0.1", port, "postgres", "postgres");
        if load.tls && pooler.is_some() {
            psql = psql.variable("PGSSLMODE", "require");
        }
        let script = std::env::temp_dir().join(format!("pgcat-bench-{}.sql", std::process::id()));
        let script = script.display().to_string();
        let clients = load.clients.to_string();
        let seconds = self.plan.pgbench.as_secs().to_string();
        let mut arguments = vec!["-n", "-M", &load.protocol, "-c", &clients, "-T", &seconds];
        arguments.extend(["-j", if load.clients == 1 { "1" } else { "2" }]);
        arguments.extend(load.arguments.iter().map(String::as_str));
        match load.script {
            Some(text) => {
                fs::write(&script, text).expect("a script");
                arguments.extend(["-f", &script]);
            }
            None => arguments.push("-S"),
        }
        let before = pooler.map_or(Duration::ZERO, cpu_time);
        let output = psql.program("pgbench", &arguments);
        let used = pooler.map_or(Duration::ZERO, cpu_time) - before;
        if load.script.is_some() {
            fs::remove_file(&script).expect("the script");
        }
        assert!(
            output.success && !output.stderr.contains("error"),
            "pgbench on port {port}: {}{}",
            output.stdout,
            output.stderr
        );
        let transactions = figure(
            &output.stdout,
            "number of transactions actually processed: ",
        );
        let tps = match transactions > 0.0 {
            true => figure(&output.stdout, "tps = "),
            // It took all the time to connect, and says nothing of a rate.
            false => 0.0,
        };
        Run {
            tps,
            cpu: used.as_secs_f64() * 1e6 / transactions,
        }
    }
}

/// The number after a prefix in what pgbench prints.
fn figure(output: &str, prefix: &str) -> f64 {
    let line = output.lines().find_map(|line| line.strip_prefix(prefix));
    let word = line.and_then(|rest| rest.split([' ', '/']).next());
    word.and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no figure after {prefix:?} in {output}"))
}
