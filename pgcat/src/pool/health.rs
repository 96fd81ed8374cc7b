//! How a server is: whether connections to it fail, whether it is banned, and what role it has.
//!
//! A server that is avoided serves only what no other server can. It is probed in the background until
//! a connection succeeds, so that no client has to find out whether it is back. Only what says
//! something about the server counts: that a connection could not be opened, or that an idle server did
//! not answer. A client's own timeouts, cancels and errors do not.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::config::model::Role;
use crate::wire::error_fields::ErrorFields;

/// See the module's text.
#[derive(Debug)]
pub struct Health {
    /// Whether other servers are to be preferred.
    avoided: AtomicBool,
    trouble: Mutex<Trouble>,
    /// What the server is, of [`UNKNOWN`], [`PRIMARY`] and [`REPLICA`]; follows the server only where
    /// its configured role is `auto`.
    role: AtomicU8,
    /// Connections made in an earlier generation are closed when they are next free.
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Connections that failed since the last that did not.
    failures: u32,
    probe_at: u64,
    ban: Option<Ban>,
    /// The server's own words when it last refused a login, and until when they stand for an answer.
    refusal: Option<(u64, ErrorFields)>,
}

/// Why and for how long a server is not to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    pub reason: BanReason,
    pub since: SystemTime,
    pub length: Duration,
    /// Coarse milliseconds.
    pub until: u64,
}

/// Why a server is banned, in PgCat's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BanReason {
    AdminBan,
    FailedCheckout,
    FailedHealthCheck,
}

const UNKNOWN: u8 = 0;
const PRIMARY: u8 = 1;
const REPLICA: u8 = 2;

/// Between the first probes of a server that cannot be reached, and between later ones.
const FIRST_PROBE: u64 = 1000;
const LAST_PROBE: u64 = 15_000;

/// For how long a refused login is not tried again. A wrong password must not become a flood of failed
/// logins, which servers may answer by locking the user out.
const REFUSAL_STANDS: u64 = 1000;

/// The same for a server that is starting: all who wait for it are not to ask it, each and often.
const START_STANDS: u64 = 250;

impl Health {
    pub fn new(configured: Role) -> Self {
        let role = match configured {
            Role::Primary => PRIMARY,
            Role::Replica => REPLICA,
            Role::Auto | Role::Mirror => UNKNOWN,
        };
        Self {
            avoided: AtomicBool::new(false),
            trouble: Mutex::default(),
            role: AtomicU8::new(role),
            generation: AtomicU64::new(0),
        }
    }

    /// Whether other servers are to be preferred.
    pub fn is_avoided(&self) -> bool {
        self.avoided.load(Ordering::Relaxed)
    }

    /// A connection could not be opened, or an idle one did not answer. `ban`: for how long, if at all.
    /// Says whether it is the first failure.
    pub fn failed(&self, now: u64, reason: BanReason, ban: Option<Duration>) -> bool {
        let mut trouble = self.lock();
        trouble.failures = trouble.failures.saturating_add(1);
        let exponent = (trouble.failures - 1).min(4);
        trouble.probe_at = now + (FIRST_PROBE << exponent).min(LAST_PROBE);
        let admin = trouble
            .ban
            .as_ref()
            .is_some_and(|ban| ban.reason == BanReason::AdminBan && now < ban.until);
        if let Some(length) = ban
            && !admin
        {
            trouble.ban = Some(Ban::new(reason, length, now));
        }
        self.avoided.store(true, Ordering::Relaxed);
        trouble.failures == 1
    }

    /// A connection was opened. Says whether there had been failures.
    pub fn succeeded(&self, now: u64) -> bool {
        let mut trouble = self.lock();
        let had_failed = trouble.failures > 0;
        trouble.failures = 0;
        trouble.refusal = None;
        // It was used although it is banned, because nothing else was there, and it served. What an
        // administrator has ordered stays.
        trouble
            .ban
            .take_if(|ban| ban.reason != BanReason::AdminBan || now >= ban.until);
        self.avoided.store(trouble.ban.is_some(), Ordering::Relaxed);
        had_failed
    }

    /// Bans the server by an administrator's order.
    pub fn ban(&self, now: u64, length: Duration) {
        let mut trouble = self.lock();
        trouble.probe_at = 0;
        trouble.ban = Some(Ban::new(BanReason::AdminBan, length, now));
        self.avoided.store(true, Ordering::Relaxed);
    }

    /// Lifts a ban, if there is one.
    pub fn unban(&self) {
        let mut trouble = self.lock();
        trouble.ban = None;
        self.avoided.store(trouble.failures > 0, Ordering::Relaxed);
    }

    /// The ban in force.
    pub fn banned(&self, now: u64) -> Option<Ban> {
        let ban = self.lock().ban.clone();
        ban.filter(|ban| now < ban.until)
    }

    /// Whether to try a connection, to find out whether the server is back.
    pub fn is_probe_due(&self, now: u64) -> bool {
        if !self.is_avoided() {
            return false;
        }
        let trouble = self.lock();
        let banned = trouble.ban.as_ref().is_some_and(|ban| now < ban.until);
        !banned && now >= trouble.probe_at
    }

    /// Notes that the server refused a login.
    pub fn refused(&self, now: u64, fields: &ErrorFields) {
        // Class 28: who one is; 3D000: no such database. Others, such as too many connections, pass.
        if fields.code.starts_with("28") || fields.code == "3D000" {
            self.lock().refusal = Some((now + REFUSAL_STANDS, fields.clone()));
        } else if fields.code == "57P03" {
            self.lock().refusal = Some((now + START_STANDS, fields.clone()));
        }
    }

    /// What the server would say to another login now.
    pub fn refusal(&self, now: u64) -> Option<ErrorFields> {
        let trouble = self.lock();
        let (until, fields) = trouble.refusal.as_ref()?;
        (now < *until).then(|| fields.clone())
    }

    /// What the server is: [`Role::Auto`] if it is not known.
    pub fn role(&self) -> Role {
        match self.role.load(Ordering::Relaxed) {
            PRIMARY => Role::Primary,
            REPLICA => Role::Replica,
            _ => Role::Auto,
        }
    }

    /// Notes what the server says it is. Says whether that is news.
    pub fn note_role(&self, role: Role) -> bool {
        let role = match role {
            Role::Primary => PRIMARY,
            Role::Replica => REPLICA,
            Role::Auto | Role::Mirror => UNKNOWN,
        };
        self.role.swap(role, Ordering::Relaxed) != role
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Has all connections that exist now closed when they are next free: the server's name leads to
    /// another machine.
    pub fn renew(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ban {
    fn new(reason: BanReason, length: Duration, now: u64) -> Self {
        Self {
            reason,
            since: SystemTime::now(),
            length,
            until: now + length.as_millis() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_starts_is_not_asked_by_each_who_waits() {
        let health = Health::new(Role::Primary);
        health.refused(10, &ErrorFields::error("57P03", "starting"));
        assert!(health.refusal(11).is_some());
        assert_eq!(health.refusal(10 + START_STANDS), None);
        health.refused(1000, &ErrorFields::error("57P03", "starting"));
        health.succeeded(1001);
        assert_eq!(health.refusal(1002), None);
    }

    const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

    #[test]
    fn a_banned_server_is_probed_when_the_ban_ends() {
        let health = Health::new(Role::Replica);
        assert!(health.failed(0, BanReason::FailedCheckout, MINUTE));
        assert!(health.is_avoided());
        assert!(!health.is_probe_due(59_999));
        assert_eq!(
            health.banned(59_999).map(|ban| ban.reason),
            Some(BanReason::FailedCheckout)
        );
        assert!(health.is_probe_due(60_000));
        assert_eq!(health.banned(60_000), None);
        assert!(health.is_avoided(), "until a probe succeeds");
        assert!(health.succeeded(60_001));
        assert!(!health.is_avoided());
    }

    #[test]
    fn probes_become_rarer() {
        let health = Health::new(Role::Primary);
        let mut waits = Vec::new();
        let mut now = 0;
        for _ in 0..6 {
            health.failed(now, BanReason::FailedCheckout, None);
            let due = (now..).step_by(1000).find(|&at| health.is_probe_due(at));
            waits.push(due.unwrap_or(0) - now);
            now = due.unwrap_or(0);
        }
        assert_eq!(waits, [1000, 2000, 4000, 8000, 15_000, 15_000]);
    }

    #[test]
    fn an_administrators_ban_outlasts_a_success() {
        let health = Health::new(Role::Replica);
        health.ban(0, Duration::from_secs(10));
        health.failed(1, BanReason::FailedCheckout, MINUTE);
        health.succeeded(2);
        assert!(health.is_avoided());
        assert_eq!(
            health.banned(3).map(|ban| ban.reason),
            Some(BanReason::AdminBan)
        );
        health.unban();
        assert!(!health.is_avoided());
    }

    #[test]
    fn only_refusals_that_last_are_remembered() {
        let health = Health::new(Role::Primary);
        health.refused(
            0,
            &ErrorFields::fatal("53300", "sorry, too many clients already"),
        );
        assert!(health.refusal(0).is_none());
        health.refused(
            0,
            &ErrorFields::fatal("28P01", "password authentication failed"),
        );
        assert!(health.refusal(999).is_some());
        assert!(health.refusal(1000).is_none());
    }
}
