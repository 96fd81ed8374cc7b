//! Notices when the name of a server leads elsewhere: after a failover that is done by DNS, the
//! connections to the old machine are replaced as they become free, and not when they break.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use super::threads::ThreadContext;

/// What names were last found to stand for.
#[derive(Debug, Default)]
struct Known(BTreeMap<String, Vec<IpAddr>>);

impl Known {
    /// Notes what a name stands for. Says whether that has changed; the order does not count, because
    /// name servers rotate it.
    fn note(&mut self, host: &str, mut found: Vec<IpAddr>) -> bool {
        found.sort_unstable();
        found.dedup();
        let before = self.0.insert(host.to_owned(), found);
        before.is_some_and(|before| before != self.0[host])
    }
}

/// Looks all names up, every `dns_max_ttl`.
pub async fn watch(thread: Rc<ThreadContext>) {
    let mut known = Known::default();
    loop {
        let pools = thread.pooler.pools();
        let addresses = || pools.iter().flat_map(|pool| &pool.addresses);
        let mut hosts: Vec<&str> = addresses()
            .map(|address| address.server.host.as_str())
            .filter(|host| !host.starts_with('/') && host.parse::<IpAddr>().is_err())
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        for host in hosts {
            let found = match tokio::net::lookup_host((host, 0)).await {
                Ok(found) => found.map(|address| address.ip()).collect(),
                Err(error) => {
                    // What is connected stays connected.
                    log::warn!("could not look up {host}: {error}");
                    continue;
                }
            };
            if known.note(host, found) {
                log::info!("{host} has a new address");
                addresses()
                    .filter(|address| address.server.host == host)
                    .for_each(|address| address.health.renew());
            }
        }
        let pause = thread.config().general.dns_max_ttl;
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_set_of_addresses_is_a_change() {
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let mut known = Known::default();
        assert!(!known.note("a", vec![ip(1), ip(2)]), "the first look");
        assert!(!known.note("a", vec![ip(2), ip(1)]));
        assert!(known.note("a", vec![ip(2), ip(3)]));
        assert!(!known.note("b", vec![ip(9)]));
        assert!(known.note("a", vec![ip(2)]));
    }
}
