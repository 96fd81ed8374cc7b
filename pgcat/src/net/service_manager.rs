//! What systemd wants to know of a service with `Type=notify`, by the protocol of sd_notify(3).

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// This process serves: after a take-over it is the main one.
pub fn serving() {
    notify(&format!("READY=1\nMAINPID={}", std::process::id()));
}

/// The service ends.
pub fn stopping() {
    notify("STOPPING=1");
}

/// Without a service manager, or if it does not listen, nobody is told.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let send = || -> io::Result<usize> {
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        let socket = UnixDatagram::unbound()?;
        // Whatever it does, the pooler does not wait for it.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address)
    };
    if let Err(error) = send() {
        log::warn!("could not tell the service manager: {error}");
    }
}
