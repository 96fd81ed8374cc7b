//! The part of the process that is taken over from.

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::UnixStream;

use super::channel::{Channel, borrowed};
use super::{ANSWER_LIMIT, CANCELS, READY, REFUSED, REQUEST, SERVING, SOCKETS, START_LIMIT, YOURS};
use super::{cancels, is_own_user_or_root};

/// A process that is ready to take over.
pub struct Taker {
    channel: Channel,
    taken: Vec<String>,
    cancels: Channel,
}

/// What is left to do after the sockets have been given away.
pub struct HandedOver {
    /// Names of the sockets that the new process has taken.
    pub taken: Vec<String>,
    /// Where it passes on cancel requests.
    pub cancels: Channel,
}

/// Answers a process that asks for the listening sockets, until it is ready to serve.
///
/// # Errors
/// It has gone, or it is none that may take over.
pub async fn offer(stream: UnixStream, sockets: Vec<(String, OwnedFd)>) -> io::Result<Taker> {
    let user = stream.peer_cred()?.uid();
    let channel = Channel::Stream(stream);
    if !is_own_user_or_root(user) {
        let message = format!("user {user} may not take over");
        channel.say(&format!("{REFUSED}{message}")).await?;
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let (request, _) = channel.line(ANSWER_LIMIT).await?;
    if request != REQUEST {
        let answer = format!("{REFUSED}this pgcat does not understand \"{request}\"");
        channel.say(&answer).await?;
        return Err(io::Error::new(io::ErrorKind::Unsupported, request));
    }
    let (cancels, sender) = cancels::pair()?;
    let (mut names, mut descriptors): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
    names.insert(0, CANCELS.to_owned());
    descriptors.insert(0, sender);
    let list = serde_json::Value::from(names);
    channel
        .send(
            format!("{SOCKETS}{list}\n").as_bytes(),
            &borrowed(&descriptors),
        )
        .await?;
    drop(descriptors);

    let ready = match channel.line(START_LIMIT).await {
        Ok((line, _)) => line,
        Err(error) => {
            let _ = channel.say(&format!("{REFUSED}{error}")).await;
            return Err(error);
        }
    };
    let taken = ready
        .strip_prefix(READY)
        .and_then(super::names)
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(Taker {
        channel,
        taken,
        cancels,
    })
}

impl Taker {
    /// Gives the sockets away. In the meantime nobody may accept from them; what connects, waits.
    ///
    /// # Errors
    /// The new process has gone, or does not answer: the sockets are still this one's.
    pub async fn hand_over(self) -> io::Result<HandedOver> {
        self.channel.say(YOURS).await?;
        let (answer, _) = self.channel.line(ANSWER_LIMIT).await?;
        if answer != SERVING {
            return Err(io::Error::new(io::ErrorKind::InvalidData, answer));
        }
        Ok(HandedOver {
            taken: self.taken,
            cancels: self.cancels,
        })
    }
}
