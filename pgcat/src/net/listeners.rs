//! What the process listens on.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, UnixStream};

use super::io::{DetachedIo, TcpOptions};
use super::takeover::{Inherited, control};
use super::unix_socket::UnixSocket;
use crate::config::model::General;
use crate::error::Error;

/// The listening sockets, each inherited from another process or opened by this one.
pub struct Listeners {
    tcp: (String, AsyncFd<std::net::TcpListener>),
    unix: Option<UnixSocket>,
    /// For metrics.
    pub exporter: Option<(String, Arc<TcpListener>)>,
    /// For the process that takes over one day.
    control: Option<UnixSocket>,
}

impl Listeners {
    /// Listens wherever the configuration says.
    ///
    /// # Errors
    /// [`Error::Start`]: somebody else listens there, or the operating system refuses.
    pub async fn open(general: &General, inherited: &mut Inherited) -> Result<Self, Error> {
        let address = format!("{}:{}", general.host, general.port);
        let (name, tcp) = tcp("tcp", &address, "", inherited).await?;
        #[expect(
            deprecated,
            reason = "unsafe only for what does not own its descriptor"
        )]
        let tcp = tcp.into_std().and_then(AsyncFd::new);
        let tcp = tcp.map_err(|error| cannot_listen(&address, "", &error))?;
        let tcp = (name, tcp);
        TcpOptions::new(general).apply(&tcp.1);
        let unix = match &general.unix_socket_dir {
            Some(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", general.port));
                let failed = |error: std::io::Error| {
                    Error::Start(format!("could not listen on {}: {error}", path.display()))
                };
                let socket = match inherited.take(&unix_name(&path)) {
                    Some(socket) => UnixSocket::adopt(socket, path.clone()),
                    None => UnixSocket::bind(path.clone(), general.unix_socket_mode),
                };
                log::info!("Running on {}", path.display());
                Some(socket.map_err(failed)?)
            }
            None => None,
        };
        let exporter = if general.enable_prometheus_exporter {
            let address = format!("{}:{}", general.host, general.prometheus_exporter_port);
            let purpose = " for prometheus_exporter_port";
            let (name, listener) = self::tcp("metrics", &address, purpose, inherited).await?;
            log::info!("Metrics on http://{address}/metrics");
            Some((name, Arc::new(listener)))
        } else {
            None
        };
        Ok(Self {
            tcp,
            unix,
            exporter,
            control: control::listen(general, inherited)?,
        })
    }

    /// The address for clients.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.1.get_ref().local_addr()
    }

    /// Sets the options of all clients to come: a connection has those of the socket it came by, without a system call for
    /// each.
    pub fn apply(&self, options: &TcpOptions) {
        options.apply(&self.tcp.1);
    }

    /// The next client; never, without listeners.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub async fn accept(listeners: Option<&Self>) -> std::io::Result<DetachedIo> {
        let Some(listeners) = listeners else {
            return std::future::pending().await;
        };
        tokio::select! {
            // Not by tokio's listener, which registers each connection with this thread's reactor, for another to undo it.
            accepted = listeners.tcp.1.async_io(Interest::READABLE, accept) => {
                Ok(DetachedIo::Tcp(accepted?))
            }
            accepted = UnixSocket::accept(listeners.unix.as_ref()) => {
                Ok(DetachedIo::Unix(accepted?.into_std()?))
            }
        }
    }

    /// The next process that may want to take over; never, without listeners.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub async fn asked(listeners: Option<&Self>) -> std::io::Result<UnixStream> {
        UnixSocket::accept(listeners.and_then(|listeners| listeners.control.as_ref())).await
    }

    /// The sockets, for another process.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn duplicate(&self) -> std::io::Result<Vec<(String, OwnedFd)>> {
        let unix = self.unix.as_ref();
        let unix = unix.map(|socket| (unix_name(socket.path()), socket.as_fd()));
        let exporter = self.exporter.as_ref();
        let exporter = exporter.map(|(name, socket)| (name.clone(), socket.as_fd()));
        let control = self.control.as_ref();
        let control = control.map(|socket| (control::name(socket.path()), socket.as_fd()));
        let all: [Option<(String, BorrowedFd<'_>)>; 4] = [
            Some((self.tcp.0.clone(), self.tcp.1.get_ref().as_fd())),
            unix,
            exporter,
            control,
        ];
        let all = all.into_iter().flatten();
        all.map(|(name, socket)| Ok((name, socket.try_clone_to_owned()?)))
            .collect()
    }

    /// Takes the files of the sockets that were inherited.
    pub fn own(&mut self, general: &General) {
        let unix = self.unix.as_mut().map(|s| s.own(general.unix_socket_mode));
        let control = self.control.as_mut().map(|s| s.own(control::MODE));
        for outcome in [unix, control].into_iter().flatten() {
            if let Err(error) = outcome {
                log::warn!("the file of a socket is not as it should be: {error}");
            }
        }
    }

    /// Closes the sockets. Those that another process has taken go on listening there.
    pub fn close(mut self, taken: &[String]) {
        let is_taken = |name: String| taken.contains(&name);
        if let Some(socket) = &mut self.unix
            && is_taken(unix_name(socket.path()))
        {
            socket.disown();
        }
        if let Some(socket) = &mut self.control
            && is_taken(control::name(socket.path()))
        {
            socket.disown();
        }
    }
}

fn accept(listener: &std::net::TcpListener) -> std::io::Result<std::net::TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::accept_with(listener, flags)?.into())
}

fn unix_name(path: &std::path::Path) -> String {
    format!("unix {}", path.display())
}

async fn tcp(
    kind: &str,
    address: &str,
    purpose: &str,
    inherited: &mut Inherited,
) -> Result<(String, TcpListener), Error> {
    let name = format!("{kind} {address}");
    let listener = match inherited.take(&name) {
        Some(socket) => {
            let listener = std::net::TcpListener::from(socket);
            listener
                .set_nonblocking(true)
                .and_then(|()| TcpListener::from_std(listener))
        }
        None => TcpListener::bind(address).await,
    };
    match listener {
        Ok(listener) => Ok((name, listener)),
        Err(error) => Err(cannot_listen(address, purpose, &error)),
    }
}

fn cannot_listen(address: &str, purpose: &str, error: &std::io::Error) -> Error {
    Error::Start(format!("could not listen on {address}{purpose}: {error}"))
}
