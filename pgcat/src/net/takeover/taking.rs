//! The part of the process that takes over.

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::UnixStream;

use super::cancels::Predecessors;
use super::channel::Channel;
use super::{ANSWER_LIMIT, CANCELS, READY, REFUSED, REQUEST, SERVING, SOCKETS, START_LIMIT, YOURS};
use super::{is_own_user_or_root, own_user};
use crate::config::model::General;
use crate::error::Error;

/// What another process has given.
#[derive(Debug, Default)]
pub struct Inherited {
    channel: Option<Channel>,
    sockets: Vec<(String, OwnedFd)>,
    taken: Vec<String>,
}

/// Asks the process that serves now for its sockets. Nothing is inherited where there is none.
///
/// # Errors
/// [`Error::Start`]: there is one, but it is another user's, or it refuses.
pub async fn ask(general: &General) -> Result<Inherited, Error> {
    let Some(path) = super::control::path(general) else {
        return Err(Error::Start(
            "--takeover: takeover_socket is \"\", which turns it off".to_owned(),
        ));
    };
    let failed = |reason: String| {
        Error::Start(format!(
            "could not take over by {}: {reason}",
            path.display()
        ))
    };
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            let path = path.display();
            log::info!("No pgcat to take over from at {path} ({error}), starting without one");
            return Ok(Inherited::default());
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    request(stream).await.map_err(failed)
}

async fn request(stream: UnixStream) -> Result<Inherited, String> {
    let text = |error: io::Error| error.to_string();
    let user = stream.peer_cred().map_err(text)?.uid();
    // Root may take over from any user. Nobody else is to serve with a stranger's sockets.
    if !is_own_user_or_root(user) && own_user() != 0 {
        return Err(format!("it belongs to user {user}"));
    }
    let channel = Channel::Stream(stream);
    // One that refuses may have done so without listening.
    let _ = channel.say(REQUEST).await;
    // Another one may be at it, and has its time to start.
    let (line, descriptors) = channel.line(START_LIMIT * 2).await.map_err(text)?;
    if let Some(reason) = line.strip_prefix(REFUSED) {
        return Err(reason.to_owned());
    }
    let names = line.strip_prefix(SOCKETS).and_then(super::names);
    let names = names.filter(|names| names.len() == descriptors.len());
    let names = names.ok_or("an answer that is not understood")?;
    log::info!("Taking over: {}", names.join(", "));
    Ok(Inherited {
        channel: Some(channel),
        sockets: names.into_iter().zip(descriptors).collect(),
        taken: Vec::new(),
    })
}

impl Inherited {
    /// The socket of this name, if it has been given.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let index = self.sockets.iter().position(|(known, _)| known == name)?;
        self.taken.push(name.to_owned());
        Some(self.sockets.swap_remove(index).1)
    }

    /// Whom to pass cancel requests on to.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn predecessors(&mut self) -> io::Result<Predecessors> {
        let (cancels, others) = std::mem::take(&mut self.sockets)
            .into_iter()
            .partition(|(name, _)| name == CANCELS);
        self.sockets = others;
        Predecessors::new(cancels.into_iter().map(|(_, socket)| socket).collect())
    }

    /// Says that this process is ready, and waits until the other one has stopped to accept.
    ///
    /// # Errors
    /// [`Error::Start`]: the other one goes on serving.
    pub async fn complete(self) -> Result<(), Error> {
        let Some(channel) = self.channel else {
            return Ok(());
        };
        let list = serde_json::Value::from(self.taken);
        // Should it have died, it cannot be told, and the next read says so.
        let _ = channel.say(&format!("{READY}{list}")).await;
        match channel.line(ANSWER_LIMIT).await {
            Ok((line, _)) if line == YOURS => {}
            Ok((line, _)) => {
                let reason = line.strip_prefix(REFUSED).unwrap_or(&line).to_owned();
                return Err(Error::Start(format!("could not take over: {reason}")));
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(Error::Start(format!("could not take over: {error}")));
            }
            Err(error) => {
                log::warn!("the process to take over from has ended ({error})");
                return Ok(());
            }
        }
        // Before the first client: until this is said, the other one takes everything back.
        if let Err(error) = channel.say(SERVING).await {
            log::warn!("the process to take over from has ended ({error})");
        }
        Ok(())
    }
}
