//! Which of the servers that may serve is to do it.

use super::address::Address;
use super::shared::PoolShared;
use crate::config::model::{LoadBalancing, Role, WantedRole};
use crate::router::route::Route;

/// What speaks against a server, the gravest first.
type Cost = (bool, bool, bool, bool, bool, usize);

impl PoolShared {
    /// The server to ask next for a connection, of those not `tried` before; its position in
    /// [`PoolShared::addresses`].
    pub fn choose(&self, route: Route, tried: &[usize]) -> Option<usize> {
        if let [only] = &*self.addresses {
            // Whatever its role: there is no choice.
            return tried.is_empty().then_some(only.id);
        }
        let wanted = self.possible_role(route);
        let candidates = self
            .addresses
            .iter()
            .filter(|address| in_shard(address, route) && address.serves(wanted))
            .filter(|address| !tried.contains(&address.id));
        let mut best: Option<(usize, Cost)> = None;
        let mut equals: u32 = 0;
        for address in candidates {
            let busy = match self.settings.load_balancing_mode {
                LoadBalancing::LeastOutstandingConnections => address.slots.busy(),
                LoadBalancing::Random => 0,
            };
            // Nobody waits for one server while another has a connection to spare.
            let cost = (
                address.health.is_avoided(),
                address.replay.is_lagging(),
                route.after.is_some_and(|after| {
                    address.role() != Role::Primary && !address.replay.has(after)
                }),
                address.role() == Role::Auto,
                !address.slots.has_room() || (self.is_full() && address.slots.idle() == 0),
                busy,
            );
            let better = match best {
                Some((_, least)) if cost == least => {
                    equals += 1;
                    rand::random_range(0..equals) == 0
                }
                Some((_, least)) if cost > least => false,
                _ => {
                    equals = 1;
                    true
                }
            };
            if better {
                best = Some((address.id, cost));
            }
        }
        best.map(|(id, _)| id)
    }

    /// Whether the server, once a connection has shown what it is, may serve after all.
    pub fn may_serve(&self, address: &Address, route: Route) -> bool {
        self.addresses.len() == 1 || address.serves(self.possible_role(route))
    }

    /// Whether a connection to this server is one that the route could have led to.
    pub fn fits(&self, address: &Address, route: Route) -> bool {
        self.addresses.len() == 1
            || in_shard(address, route) && address.serves(self.possible_role(route))
    }

    /// Whether a server that can serve may turn up soon: a failover is perhaps under way.
    pub fn awaits_failover(&self, route: Route) -> bool {
        let mut servers = self.addresses.iter();
        self.addresses.len() > 1
            && (route.role == WantedRole::Primary || route.after.is_some())
            && servers.any(|address| in_shard(address, route) && address.server.role == Role::Auto)
    }

    /// The role a route asks for, where servers of that role exist: a statement that any replica could
    /// serve goes to the primary of a shard that has no replicas.
    fn possible_role(&self, route: Route) -> WantedRole {
        let may_fail_over = self.settings.replica_to_primary_failover_enabled;
        let in_shard = || {
            let addresses = self.addresses.iter();
            addresses.filter(|address| in_shard(address, route))
        };
        // Replicas that lag are as good as none.
        let some_lag = in_shard().any(|address| address.replay.is_lagging());
        let usable =
            |address: &Address| !address.health.is_avoided() && !address.replay.is_lagging();
        let exists = in_shard().any(|address| match (route.role, address.server.role) {
            (WantedRole::Any, _) => true,
            (WantedRole::Primary, role) => matches!(role, Role::Primary | Role::Auto),
            (WantedRole::Replica, Role::Replica) => !may_fail_over && !some_lag || usable(address),
            // After a failover perhaps all that is left is a primary, which can read, too.
            (WantedRole::Replica, Role::Auto) => {
                address.serves(WantedRole::Replica) && usable(address)
            }
            (WantedRole::Replica, _) => false,
        });
        if exists { route.role } else { WantedRole::Any }
    }
}

fn in_shard(address: &Address, route: Route) -> bool {
    route.shard.is_none_or(|shard| address.shard == shard)
}
