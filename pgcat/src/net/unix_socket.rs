//! Unix sockets to listen on: that for clients, by PostgreSQL's name for it, and any other.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A listening socket. Its file is removed with it, if it is this process's.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// `None`: the file is another process's.
    inode: Option<u64>,
}

impl UnixSocket {
    /// Listens.
    ///
    /// # Errors
    /// Somebody else listens there, or what else the operating system has against it.
    pub fn bind(path: PathBuf, mode: u32) -> io::Result<Self> {
        remove_stale(&path)?;
        let listener = UnixListener::bind(&path)?;
        let mut socket = Self {
            listener,
            path,
            inode: None,
        };
        socket.own(mode)?;
        Ok(socket)
    }

    /// A socket that another process listens on, too, and whose file is that one's.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn adopt(socket: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let listener = StdUnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            path,
            inode: None,
        })
    }

    /// Takes the file for this process's. If the other one has removed it, the socket is a new one.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn own(&mut self, mode: u32) -> io::Result<()> {
        if !self.path.exists() {
            self.listener = UnixListener::bind(&self.path)?;
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(mode))?;
        self.inode = Some(fs::metadata(&self.path)?.ino());
        Ok(())
    }

    /// Leaves the file to another process.
    pub fn disown(&mut self) {
        self.inode = None;
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection; never, if there is no socket.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub async fn accept(socket: Option<&Self>) -> io::Result<UnixStream> {
        match socket {
            None => std::future::pending().await,
            Some(socket) => Ok(socket.listener.accept().await?.0),
        }
    }
}

impl AsFd for UnixSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let Some(inode) = self.inode else {
            return;
        };
        // Not that of a successor.
        if fs::metadata(&self.path).is_ok_and(|file| file.ino() == inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that a pooler left behind when it was killed: nobody answers there.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    match StdUnixStream::connect(path) {
        Err(error) if is_socket && error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path)
        }
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        // Nothing is there, or what bind will complain of.
        Err(_) => Ok(()),
    }
}
