//! Which of the servers that may serve is to do it.

use super::address::Address;
use super::shared::PoolShared;
use crate::config::model::{LoadBalancing, Role, WantedRole};
use crate::router::route::Route;

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
        let mut best: Option<(usize, (bool, usize))> = None;
        let mut equals: u32 = 0;
        for address in candidates {
            let busy = match self.settings.load_balancing_mode {
                LoadBalancing::LeastOutstandingConnections => address.slots.busy(),
                LoadBalancing::Random => 0,
            };
            // Nobody waits for one server while another has a connection to spare.
            let cost = (!address.slots.has_room(), busy);
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

    /// The role a route asks for, where servers of that role exist: a statement that any replica could
    /// serve goes to the primary of a shard that has no replicas.
    fn possible_role(&self, route: Route) -> WantedRole {
        let exists = self.addresses.iter().any(|address| {
            in_shard(address, route)
                && (address.serves(route.role) || address.server.role == Role::Auto)
        });
        if exists { route.role } else { WantedRole::Any }
    }
}

fn in_shard(address: &Address, route: Route) -> bool {
    route.shard.is_none_or(|shard| address.shard == shard)
}
