//! Where the processes find each other.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Inherited, own_user};
use crate::config::model::{General, TakeoverSocket};
use crate::error::Error;
use crate::net::unix_socket::UnixSocket;

/// For the user only. Whoever gets past the file's mode is asked who he is, too.
pub const MODE: u32 = 0o600;

/// The socket's path: that of the configuration, or one made of where clients connect to, so that two
/// configurations for the same address find each other. `None`: it is turned off.
pub(super) fn path(general: &General) -> Option<PathBuf> {
    match &general.takeover_socket {
        TakeoverSocket::Off => None,
        TakeoverSocket::At(path) => Some(path.clone()),
        TakeoverSocket::Default => Some(match &general.unix_socket_dir {
            Some(directory) => directory.join(format!(".s.PGSQL.{}.takeover", general.port)),
            None => {
                let host = general.host.replace(['/', '\0'], "_");
                own_directory().join(format!("{host}:{}.takeover", general.port))
            }
        }),
    }
}

/// A directory of the user's own where everybody may make some, as tmux has it.
fn own_directory() -> PathBuf {
    std::env::temp_dir().join(format!("pgcat-{}", own_user()))
}

/// The socket's name between the processes.
pub fn name(path: &Path) -> String {
    format!("control {}", path.display())
}

/// Listens for a process that takes over, unless that is turned off.
///
/// # Errors
/// [`Error::Start`] if the configuration names a path, and it cannot listen there. By itself it goes on
/// without: nothing that worked before is lost.
pub fn listen(general: &General, inherited: &mut Inherited) -> Result<Option<UnixSocket>, Error> {
    let Some(path) = path(general) else {
        return Ok(None);
    };
    let listening = match inherited.take(&name(&path)) {
        Some(socket) => UnixSocket::adopt(socket, path.clone()),
        None => prepare(general, &path).and_then(|()| UnixSocket::bind(path.clone(), MODE)),
    };
    match listening {
        Ok(socket) => Ok(Some(socket)),
        Err(error) => {
            let message = format!("could not listen on {}: {error}", path.display());
            if general.takeover_socket != TakeoverSocket::Default {
                return Err(Error::Start(format!("{message} (takeover_socket)")));
            }
            log::warn!("{message}; there is no taking over from this process");
            Ok(None)
        }
    }
}

/// Makes the user's own directory, if that is where the socket goes.
fn prepare(general: &General, path: &Path) -> io::Result<()> {
    let directory = own_directory();
    if general.takeover_socket != TakeoverSocket::Default || !path.starts_with(&directory) {
        return Ok(());
    }
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Somebody else may have been faster, to lure us.
    let found = fs::symlink_metadata(&directory)?;
    if !found.is_dir() || found.uid() != own_user() || found.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{} is not this user's own", directory.display()),
        ));
    }
    Ok(())
}
