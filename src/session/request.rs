//! Requests to one connection: from the one who asks to the session's own thread, and the answer back.

use crate::protocol::error_response::{ErrorResponse, sqlstate};

/// What is asked of a session. It is done between two commands of its client, after everything that the client had
/// sent before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Put the session's cluster back to its template. For the client everything is as after its startup: what it has
    /// set, prepared or begun is gone.
    Reset,
    /// Make a template from the session's cluster as it is now.
    Freeze {
        /// The template's name.
        name: String,
        /// What is to be kept with it for whoever asks, such as a hash of what it was made from.
        key: Option<String>,
    },
}

/// What a request answers: figures by their names, or why there are none.
pub type Answer = Result<Vec<(&'static str, String)>, ErrorResponse>;

/// A task and who wants to know how it went. It is always answered: if by nobody else, then when it is dropped.
pub struct Request {
    /// What is to be done.
    pub task: Task,
    reply: Option<Box<dyn FnOnce(Answer) + Send>>,
}

impl Request {
    /// A request that is answered by calling `reply`, on any thread. It must not block.
    pub fn new(task: Task, reply: impl FnOnce(Answer) + Send + 'static) -> Self {
        Self { task, reply: Some(Box::new(reply)) }
    }

    /// Answers it.
    pub fn answer(mut self, answer: Answer) {
        self.reply_with(answer);
    }

    fn reply_with(&mut self, answer: Answer) {
        if let Some(reply) = self.reply.take() {
            reply(answer);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let message = "the connection ended before the request could be handled";
        self.reply_with(Err(ErrorResponse::error(sqlstate::CONNECTION_DOES_NOT_EXIST, message)));
    }
}
