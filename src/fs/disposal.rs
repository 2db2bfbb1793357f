//! Frees the contents of large files that were removed or cut, on a thread of its own.
//!
//! To free a gigabyte takes a tenth of a second, most of it in the operating system. The tree of the cluster would be
//! locked meanwhile, and the process that has removed the file would keep its turn.

use std::{
    any::Any,
    sync::{
        LazyLock,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use super::chunk::CHUNK;

/// What has fewer chunks is freed at once: a megabyte.
const LARGE: usize = (1 << 20) / CHUNK;

/// How many contents wait to be freed. They do not count for their cluster any more, so there are few.
const WAITING: usize = 2;

/// What the thread frees. It is `None` if there is no thread.
static WASTE: LazyLock<Option<SyncSender<Box<dyn Any + Send>>>> = LazyLock::new(|| {
    let (waste, to_free) = sync_channel::<Box<dyn Any + Send>>(WAITING);
    let free = move || to_free.into_iter().for_each(drop);
    let spawned = thread::Builder::new().name("disposal".into()).stack_size(64 << 10).spawn(free);
    spawned.is_ok().then_some(waste)
});

/// Frees `content`, which has so many chunks: soon if it is large, at once if it is small, or if much is to be freed.
pub(super) fn dispose<T: Send + 'static>(chunks: usize, content: T) {
    if chunks < LARGE {
        return drop(content);
    }
    let Some(waste) = &*WASTE else { return drop(content) };
    match waste.try_send(Box::new(content)) {
        Ok(()) => {}
        Err(TrySendError::Full(content) | TrySendError::Disconnected(content)) => drop(content),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Tells on which thread it is dropped.
    struct Told(Sender<Option<String>>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send(thread::current().name().map(str::to_owned)).unwrap();
        }
    }

    #[test]
    fn a_large_content_is_freed_on_another_thread_and_a_small_one_at_once() {
        let (tell, told) = channel();
        dispose(LARGE - 1, Told(tell.clone()));
        assert_eq!(told.try_recv().unwrap().as_deref(), thread::current().name());
        // Other tests may have filled the queue.
        loop {
            dispose(LARGE, Told(tell.clone()));
            if told.recv().unwrap().as_deref() == Some("disposal") {
                return;
            }
        }
    }
}
