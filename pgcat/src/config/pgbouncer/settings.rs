//! The settings of `[pgbouncer]`: their defaults, and what becomes of each.

use std::path::Path;

use super::super::error::ConfigError;
use super::ini::Place;

/// What becomes of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The key it becomes, in some section.
    Becomes(&'static str),
    /// Why nobody will miss it.
    NotNeeded(&'static str),
    /// What is different without it, where it is not at its default.
    Missing(&'static str),
}

pub(super) struct Known {
    pub name: &'static str,
    /// Of PgBouncer 1.25.
    pub default: &'static str,
    pub fate: Fate,
}

const fn known(name: &'static str, default: &'static str, fate: Fate) -> Known {
    Known {
        name,
        default,
        fate,
    }
}

use Fate::{Becomes, Missing, NotNeeded};

const DEFAULT_AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword \
     END FROM pg_authid WHERE rolname=$1 AND rolcanlogin";

/// Every setting of PgBouncer 1.18 to 1.25, in alphabetical order.
#[rustfmt::skip]
pub(super) const ALL: &[Known] = &[
    known("admin_users", "", Becomes("admin_users")),
    known("application_name_add_host", "0", Missing("application_name stays as the client has set it")),
    known("auth_dbname", "", Missing("auth_query is asked in the database of the pool")),
    known("auth_file", "", Becomes("users")),
    known("auth_hba_file", "", Becomes("hba_file")),
    known("auth_ident_file", "", Missing("there are no user name maps")),
    // Its value may hold a password.
    known("auth_ldap_options", "", NotNeeded("it is for auth_type ldap")),
    known("auth_query", DEFAULT_AUTH_QUERY, Becomes("auth_query")),
    known("auth_type", "md5", Becomes("auth_type")),
    known("auth_user", "", Becomes("auth_query_user")),
    known("autodb_idle_timeout", "3600", NotNeeded("every pool is configured and stays")),
    known("cancel_wait_timeout", "10", NotNeeded("a cancel request never waits for a pool's connection")),
    known("client_idle_timeout", "0", Becomes("client_idle_timeout")),
    known("client_login_timeout", "60", Becomes("client_login_timeout")),
    known("client_tls13_ciphers", "", NotNeeded("the TLS library's choice is current")),
    known("client_tls_ca_file", "", Becomes("tls_ca")),
    known("client_tls_cert_file", "", Becomes("tls_certificate")),
    known("client_tls_ciphers", "default", NotNeeded("the TLS library has no weak ciphers")),
    known("client_tls_dheparams", "auto", NotNeeded("keys are exchanged on elliptic curves only")),
    known("client_tls_ecdhcurve", "auto", NotNeeded("the TLS library's choice is current")),
    known("client_tls_key_file", "", Becomes("tls_private_key")),
    known("client_tls_protocols", "secure", Missing("TLS is 1.2 or 1.3")),
    known("client_tls_sslmode", "disable", Becomes("tls_mode")),
    known("conffile", "", NotNeeded("the configuration is the file pgcat is started with")),
    known("default_pool_size", "20", Becomes("pool_size")),
    known("disable_pqexec", "0", Missing("clients may use the simple protocol")),
    known("dns_max_ttl", "15", Becomes("dns_max_ttl")),
    known("dns_nxdomain_ttl", "15", NotNeeded("names that do not resolve are looked up again")),
    known("dns_zone_check_period", "0", Missing("names are looked up every dns_max_ttl instead")),
    known("idle_transaction_timeout", "0", Becomes("idle_client_in_transaction_timeout")),
    known("ignore_startup_parameters", "", NotNeeded("parameters at startup are not refused, they take effect")),
    known("job_name", "pgbouncer", NotNeeded("it is for Windows")),
    known("listen_addr", "", Becomes("host")),
    known("listen_backlog", "128", NotNeeded("the backlog is large enough")),
    known("listen_port", "6432", Becomes("port")),
    known("log_connections", "1", Becomes("log_client_connections")),
    known("log_disconnections", "1", Becomes("log_client_disconnections")),
    known("log_pooler_errors", "1", Missing("what is logged is chosen with --log-level and RUST_LOG")),
    known("log_stats", "1", NotNeeded("SHOW STATS has the statistics")),
    known("logfile", "", NotNeeded("the log goes to standard output, for the service manager to keep")),
    known("max_client_conn", "100", Becomes("max_client_conn")),
    known("max_db_client_connections", "0", Becomes("max_client_connections")),
    known("max_db_connections", "0", Becomes("max_db_connections")),
    known("max_packet_size", "2147483647", Missing("messages may have any size; they pass in constant memory")),
    known("max_prepared_statements", "200", Becomes("prepared_statements_cache_size")),
    known("max_user_client_connections", "0", Becomes("max_client_connections")),
    known("max_user_connections", "0", Becomes("max_user_connections")),
    known("min_pool_size", "0", Becomes("min_pool_size")),
    known("peer_id", "0", NotNeeded("one process uses all processors: it needs no peers")),
    known("pidfile", "", NotNeeded("the service manager knows the process")),
    known("pkt_buf", "4096", NotNeeded("buffers are as large as they need to be")),
    known("pool_mode", "session", Becomes("pool_mode")),
    known("query_timeout", "0", Becomes("statement_timeout")),
    known("query_wait_notify", "5", Missing("clients that wait are not told so")),
    known("query_wait_timeout", "120", Becomes("connect_timeout")),
    known("reserve_pool_size", "0", Becomes("reserve_pool_size")),
    known("reserve_pool_timeout", "5", Becomes("reserve_pool_timeout")),
    known("resolv_conf", "", Missing("names are resolved as the system does")),
    known("sbuf_loopcnt", "5", NotNeeded("a large result does not hold up others")),
    known("scram_iterations", "4096", NotNeeded("secrets that are in the configuration have their own")),
    known("server_check_delay", "30", Becomes("healthcheck_delay")),
    known("server_check_query", "<empty>", NotNeeded("connections are checked with an empty query")),
    known("server_connect_timeout", "15", Missing("connect_timeout is the limit of queueing and connecting together")),
    known("server_fast_close", "0", Missing("in session mode, RECONNECT waits for the end of the session")),
    known("server_idle_timeout", "600", Becomes("idle_timeout")),
    known("server_lifetime", "3600", Becomes("server_lifetime")),
    known("server_login_retry", "15", NotNeeded("logins that fail are paced by themselves")),
    known("server_reset_query", "DISCARD ALL", NotNeeded("what a client leaves behind is cleaned up by DISCARD ALL, and only then")),
    known("server_reset_query_always", "0", NotNeeded("what a client leaves behind is cleaned up in every mode")),
    known("server_round_robin", "0", Becomes("server_round_robin")),
    known("server_tls13_ciphers", "", NotNeeded("the TLS library's choice is current")),
    known("server_tls_ca_file", "", Becomes("server_tls_ca")),
    known("server_tls_cert_file", "", Becomes("server_tls_certificate")),
    known("server_tls_ciphers", "default", NotNeeded("the TLS library has no weak ciphers")),
    known("server_tls_key_file", "", Becomes("server_tls_private_key")),
    known("server_tls_protocols", "secure", Missing("TLS is 1.2 or 1.3")),
    // "disable" before 1.20. With either kind of server, "prefer" connects.
    known("server_tls_sslmode", "prefer", Becomes("server_tls_mode")),
    known("service_name", "pgbouncer", NotNeeded("it is for Windows")),
    known("so_reuseport", "0", NotNeeded("one process uses all processors (worker_threads), and is restarted by --takeover")),
    known("stats_period", "60", Missing("averages are over 15 s")),
    known("stats_users", "", Becomes("stats_users")),
    known("suspend_timeout", "10", NotNeeded("an online restart by --takeover suspends nobody")),
    known("syslog", "0", Missing("the log goes to standard output, for the service manager to keep")),
    known("syslog_facility", "daemon", NotNeeded("the service manager sets it")),
    known("syslog_ident", "pgbouncer", NotNeeded("the service manager sets it")),
    known("tcp_defer_accept", "1", NotNeeded("a client that says nothing costs little")),
    known("tcp_keepalive", "1", Missing("TCP keepalive is always on")),
    known("tcp_keepcnt", "0", Becomes("tcp_keepalives_count")),
    known("tcp_keepidle", "0", Becomes("tcp_keepalives_idle")),
    known("tcp_keepintvl", "0", Becomes("tcp_keepalives_interval")),
    known("tcp_socket_buffer", "0", Missing("the kernel sizes its buffers")),
    known("tcp_user_timeout", "0", Becomes("tcp_user_timeout")),
    known("track_extra_parameters", "IntervalStyle", NotNeeded("every setting follows its client")),
    known("transaction_timeout", "0", Becomes("transaction_timeout")),
    known("unix_socket_dir", "/tmp", Becomes("unix_socket_dir")),
    known("unix_socket_group", "", Missing("the socket's group is that of the process")),
    known("unix_socket_mode", "0777", Becomes("unix_socket_mode")),
    known("user", "", Missing("the service manager says under which user pgcat runs")),
    known("verbose", "0", NotNeeded("what is logged is chosen with --log-level and RUST_LOG")),
];

/// A setting's value, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub name: String,
    pub text: String,
    /// Of the line, or of the file where there is none.
    pub place: Place,
    pub is_default: bool,
}

impl Setting {
    pub fn error(&self, message: impl Into<String>) -> ConfigError {
        self.place.error(&self.name, message)
    }

    fn expected(&self, what: &str) -> ConfigError {
        self.error(format!("expected {what}, found {:?}", self.text))
    }

    /// As `strtol` reads it with base 0, which is how an octal mode gets into a decimal setting.
    pub fn integer(&self) -> Result<i64, ConfigError> {
        let text = self.text.as_str();
        let hexadecimal = text.strip_prefix("0x").or(text.strip_prefix("0X"));
        let number = match hexadecimal {
            Some(digits) => i64::from_str_radix(digits, 16),
            None if text.len() > 1 && text.starts_with('0') => i64::from_str_radix(text, 8),
            None => text.parse(),
        };
        number.map_err(|_| self.expected("an integer"))
    }

    /// An integer that counts something.
    pub fn count(&self) -> Result<i64, ConfigError> {
        let number = self.integer()?;
        if (0..=i64::from(i32::MAX)).contains(&number) {
            Ok(number)
        } else {
            Err(self.expected("an integer of at least 0"))
        }
    }

    pub fn flag(&self) -> Result<bool, ConfigError> {
        self.integer().map(|number| number != 0)
    }

    /// Seconds, with a fraction perhaps, as milliseconds: of a time, at least one.
    pub fn milliseconds(&self) -> Result<i64, ConfigError> {
        let seconds = self.text.parse::<f64>().ok();
        let seconds = seconds
            .filter(|seconds| seconds.is_finite() && (0.0..=1e9).contains(seconds))
            .ok_or_else(|| self.expected("a number of seconds"))?;
        #[allow(clippy::cast_possible_truncation)] // The range has been looked at.
        Ok((seconds * 1000.0).ceil() as i64)
    }

    /// One of some words, in any case.
    pub fn choice(&self, words: &[&'static str]) -> Result<&'static str, ConfigError> {
        words
            .iter()
            .find(|word| word.eq_ignore_ascii_case(&self.text))
            .copied()
            .ok_or_else(|| self.expected(&words.join(" or ")))
    }

    /// The parts of a list with commas.
    pub fn list(&self) -> Vec<String> {
        let parts = self.text.split(',').map(str::trim);
        parts.filter(|p| !p.is_empty()).map(str::to_owned).collect()
    }

    /// Where it comes from, for a comment.
    pub fn origin(&self) -> String {
        if self.is_default {
            format!("{}, PgBouncer's default", self.name)
        } else {
            format!("{}, line {}", self.name, self.place.line)
        }
    }
}

/// The settings as they are in effect.
pub(super) struct Settings {
    set: Vec<Setting>,
    /// For what stands nowhere.
    pub start: Place,
}

impl Settings {
    pub fn new(path: &Path) -> Self {
        Self {
            set: Vec::new(),
            start: Place {
                path: path.into(),
                line: 1,
            },
        }
    }

    /// Takes a line over; the last one of a name counts.
    pub fn put(&mut self, name: String, text: String, place: Place) {
        self.set.retain(|setting| setting.name != name);
        self.set.push(Setting {
            name,
            text,
            place,
            is_default: false,
        });
    }

    /// A setting, or its default.
    pub fn get(&self, name: &str) -> Setting {
        let set = self.set.iter().find(|setting| setting.name == name);
        set.cloned().unwrap_or_else(|| Setting {
            name: name.to_owned(),
            text: self.text(name).to_owned(),
            place: self.start.clone(),
            is_default: true,
        })
    }

    /// As [`Self::get`], only the text.
    pub fn text(&self, name: &str) -> &str {
        let set = self.set.iter().find(|setting| setting.name == name);
        let default = || ALL.iter().find(|known| known.name == name);
        match set {
            Some(setting) => &setting.text,
            None => default().map_or("", |known| known.default),
        }
    }

    /// The lines of the file, in its order.
    pub fn in_file(&self) -> &[Setting] {
        &self.set
    }
}
