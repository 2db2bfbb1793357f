//! Clones that are kept ready, so that a connection need not wait until its own has been made.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    thread,
};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::store::Template;
use crate::{backend::Backend, engine::THREAD_STACK, fs::Console, program::Program};

/// Clones of templates, ready to be taken.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Tells the thread which template a clone was taken of; `None` when nothing is kept ready.
    taken: Option<Sender<Weak<Template>>>,
}

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
    /// A pool that keeps `wanted` clones of each template that has been used.
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
            .spawn(move || on_thread.refill(&templates))
            .context("no thread to keep clones ready")?;
        Ok(Self { shared, taken: Some(taken) })
    }

    /// A clone of `template`: one that is ready, or a new one. What makes a clone different from all others is made now.
    ///
    /// # Errors
    /// When the system has no more memory mappings to give.
    pub(crate) fn take(&self, template: &Arc<Template>, console: Box<dyn Console>) -> anyhow::Result<Backend> {
        let ready = self.taken.as_ref().and_then(|taken| {
            let ready = self.shared.take(template);
            // The thread lives as long as this end of the channel.
            let _ = taken.send(Arc::downgrade(template));
            ready
        });
        let mut clone = match ready {
            Some(clone) => clone,
            None => template.snapshot.make(&self.shared.program)?,
        };
        template.snapshot.make_distinct(&mut clone)?;
        clone.guest().files.set_console(console);
        Ok(clone)
    }

    /// Has clones of `template` made ready before the first one is taken.
    pub(crate) fn announce(&self, template: &Arc<Template>) {
        if let Some(taken) = &self.taken {
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

    /// Makes clones of the templates that are named, and lets go of those of templates that are no longer in use.
    fn refill(&self, templates: &Receiver<Weak<Template>>) {
        for template in templates {
            let Some(template) = template.upgrade() else { continue };
            while self.lacks(&template) {
                match template.snapshot.make(&self.program) {
                    Ok(clone) => self.put(&template, clone),
                    Err(error) => {
                        tracing::warn!("no clone of {:?} can be kept ready: {error:#}", template.name);
                        break;
                    }
                }
            }
        }
    }

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
