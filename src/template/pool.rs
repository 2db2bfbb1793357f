//! Clones for connections. Some are made in advance, so that a connection does not wait for its clone.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::catalog::Template;
use crate::{
    backend::{Backend, program::Program},
    engine::THREAD_STACK,
    fs::Console,
};

/// Clones of templates, ready to be taken.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Sends the template of each clone that was taken to the pool's thread. `None` when no clones are kept ready.
    taken: Option<Sender<Weak<Template>>>,
}

/// The pause before a taken clone is replaced while others are ready. The session of the taken clone starts during the
/// pause. Making a clone at the same time would slow that down, because only one thread of a process can change the
/// process' memory mappings at a time.
const PAUSE: Duration = Duration::from_millis(1);

struct Shared {
    program: Arc<Program>,
    /// How many clones to keep of each template.
    wanted: usize,
    ready: Mutex<HashMap<String, Ready>>,
}

/// The clones of one edition of a template.
struct Ready {
    template: Weak<Template>,
    clones: Vec<Backend>,
}

impl Pool {
    /// A pool that keeps `wanted` clones of each template that has been used; none at all when that is 0.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(super) fn new(program: Arc<Program>, wanted: usize) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared { program, wanted, ready: Mutex::default() });
        if wanted == 0 {
            return Ok(Self { shared, taken: None });
        }
        let (taken, templates) = unbounded();
        let on_thread = shared.clone();
        thread::Builder::new()
            .name("warm-pool".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(move || on_thread.run(&templates))
            .context("no thread to keep clones ready")?;
        Ok(Self { shared, taken: Some(taken) })
    }

    /// A clone of `template`: one that is ready, or a new one. The state that clones must not share is set now.
    ///
    /// # Errors
    /// When the system has no more memory mappings to give.
    pub(crate) fn take(&self, template: &Arc<Template>, console: Box<dyn Console>) -> anyhow::Result<Backend> {
        let mut clone = self.clone_of(template)?;
        template.snapshot.make_distinct(&mut clone)?;
        clone.guest().files.set_console(console);
        Ok(clone)
    }

    /// One that is ready, or a new one.
    fn clone_of(&self, template: &Arc<Template>) -> anyhow::Result<Backend> {
        let ready = self.shared.take(template);
        self.announce(template);
        ready.map_or_else(|| template.snapshot.make(&self.shared.program), Ok)
    }

    /// Asks the pool's thread to make clones of `template` until the wanted number is ready.
    pub(crate) fn announce(&self, template: &Arc<Template>) {
        if let Some(taken) = &self.taken {
            // The thread lives as long as this end of the channel.
            let _ = taken.send(Arc::downgrade(template));
        }
    }

    /// How many clones are ready.
    pub(crate) fn ready(&self) -> usize {
        self.shared.ready.lock().values().map(|ready| ready.clones.len()).sum()
    }
}

impl Shared {
    fn take(&self, template: &Arc<Template>) -> Option<Backend> {
        self.ready.lock().get_mut(&template.name).filter(|ready| ready.is_of(template))?.clones.pop()
    }

    fn run(&self, templates: &Receiver<Weak<Template>>) {
        for template in templates {
            if let Some(template) = template.upgrade()
                && self.lacks(&template)
            {
                self.refill(&template);
            }
        }
    }

    /// Makes clones of `template` until there are as many as are wanted.
    fn refill(&self, template: &Arc<Template>) {
        if self.has_ready(template) {
            thread::sleep(PAUSE);
        }
        while self.lacks(template) {
            match template.snapshot.make_ready(&self.program) {
                Ok(clone) => self.put(template, clone),
                Err(error) => {
                    tracing::warn!("no clone of {:?} can be kept ready: {error:#}", template.name);
                    break;
                }
            }
        }
    }

    fn has_ready(&self, template: &Arc<Template>) -> bool {
        self.ready.lock().get(&template.name).is_some_and(|ready| ready.is_of(template) && !ready.clones.is_empty())
    }

    /// Whether clones of `template` are missing. Drops clones of templates that are no longer in use.
    fn lacks(&self, template: &Arc<Template>) -> bool {
        let mut ready = self.ready.lock();
        let outdated: Vec<Ready> =
            ready.extract_if(|_, ready| ready.template.strong_count() == 0).map(|(_, ready)| ready).collect();
        let lacks =
            ready.get(&template.name).is_none_or(|ready| !ready.is_of(template) || ready.clones.len() < self.wanted);
        drop(ready);
        // Unmapping memory takes a while.
        drop(outdated);
        lacks
    }

    fn put(&self, template: &Arc<Template>, clone: Backend) {
        let mut ready = self.ready.lock();
        let place = ready.entry(template.name.clone()).or_insert_with(|| Ready::of(template));
        if !place.is_of(template) {
            *place = Ready::of(template);
        }
        place.clones.push(clone);
    }
}

impl Ready {
    fn of(template: &Arc<Template>) -> Self {
        Self { template: Arc::downgrade(template), clones: Vec::new() }
    }

    fn is_of(&self, template: &Arc<Template>) -> bool {
        std::ptr::eq(self.template.as_ptr(), Arc::as_ptr(template))
    }
}
