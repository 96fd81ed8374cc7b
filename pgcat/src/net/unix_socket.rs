//! The Unix socket clients may connect to, by PostgreSQL's name for it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::io::DetachedIo;
use crate::config::model::General;
use crate::error::Error;

/// A listening socket. Its file is removed with it.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl UnixSocket {
    /// Listens in `unix_socket_dir`; `Ok(None)` without it.
    ///
    /// # Errors
    /// [`Error::Start`]: somebody else listens there, or the operating system refuses.
    pub fn listen(general: &General) -> Result<Option<Self>, Error> {
        let Some(directory) = &general.unix_socket_dir else {
            return Ok(None);
        };
        let path = directory.join(format!(".s.PGSQL.{}", general.port));
        let failed = |error: io::Error| {
            Error::Start(format!("could not listen on {}: {error}", path.display()))
        };
        remove_stale(&path).map_err(failed)?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let mode = fs::Permissions::from_mode(general.unix_socket_mode);
        fs::set_permissions(&path, mode).map_err(failed)?;
        let inode = fs::metadata(&path).map_err(failed)?.ino();
        log::info!("Running on {}", path.display());
        Ok(Some(Self {
            listener,
            path,
            inode,
        }))
    }

    /// The next client; never, if there is no socket.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub async fn accept(socket: Option<&Self>) -> io::Result<DetachedIo> {
        match socket {
            None => std::future::pending().await,
            Some(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                Ok(DetachedIo::Unix(stream.into_std()?))
            }
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Not that of a successor.
        if fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that a pooler left behind when it was killed: nobody answers there.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    match UnixStream::connect(path) {
        Err(error) if is_socket && error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path)
        }
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        // Nothing is there, or what bind will complain of.
        Err(_) => Ok(()),
    }
}
