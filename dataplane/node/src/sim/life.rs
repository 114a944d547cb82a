//! The tasks of one run of a node among others: they end all at once, where they stand, when the node is killed.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::{Rc, Weak},
    task::{Poll, Waker},
};

use futures::future::LocalBoxFuture;

use super::executor::Spawn;

type Task = RefCell<Option<LocalBoxFuture<'static, ()>>>;

/// See the module.
pub(super) struct Life {
    spawn: Spawn,
    tasks: RefCell<Vec<Weak<Task>>>,
    /// Tasks when the list was last rid of those that have ended.
    swept: Cell<usize>,
    over: Cell<bool>,
    /// Stopped as SIGSTOP does it; who would run then, waits here.
    paused: RefCell<Option<Vec<Waker>>>,
}

impl Life {
    pub(super) fn new(spawn: Spawn) -> Rc<Self> {
        let (tasks, swept, over) = (RefCell::default(), Cell::new(64), Cell::new(false));
        Rc::new(Self { spawn, tasks, swept, over, paused: RefCell::default() })
    }

    /// Starts tasks that end with this life.
    pub(super) fn spawner(self: &Rc<Self>) -> Spawn {
        // Weak, or the tasks would hold themselves.
        let life = Rc::downgrade(self);
        Rc::new(move |task| {
            if let Some(life) = life.upgrade() {
                life.start(task);
            }
        })
    }

    fn start(self: &Rc<Self>, task: LocalBoxFuture<'static, ()>) {
        if self.over.get() {
            return;
        }
        let slot: Rc<Task> = Rc::new(RefCell::new(Some(task)));
        self.tasks.borrow_mut().push(Rc::downgrade(&slot));
        if self.tasks.borrow().len() > 2 * self.swept.get() {
            self.tasks.borrow_mut().retain(|task| task.strong_count() > 0);
            self.swept.set(self.tasks.borrow().len().max(64));
        }
        let life = Rc::downgrade(self);
        (self.spawn)(Box::pin(poll_fn(move |context| {
            let paused = life.upgrade().is_some_and(|life| life.waits(context.waker()));
            if paused && slot.borrow().is_some() {
                return Poll::Pending;
            }
            let mut slot = slot.borrow_mut();
            let Some(task) = &mut *slot else { return Poll::Ready(()) };
            task.as_mut().poll(context)
        })));
    }

    fn waits(&self, waker: &Waker) -> bool {
        let mut paused = self.paused.borrow_mut();
        paused.as_mut().map(|waiting| waiting.push(waker.clone())).is_some()
    }

    /// Nothing of it runs until [`Life::go_on`]; its clocks do.
    pub(super) fn pause(&self) {
        self.paused.borrow_mut().get_or_insert_default();
    }

    /// See [`Life::pause`].
    pub(super) fn go_on(&self) {
        let waiting = self.paused.take().unwrap_or_default();
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Nothing of it runs from now on.
    pub(super) fn end(&self) {
        self.over.set(true);
        self.go_on();
        let tasks = self.tasks.take();
        let dropped: Vec<_> =
            tasks.iter().filter_map(Weak::upgrade).filter_map(|task| task.borrow_mut().take()).collect();
        drop(dropped);
    }
}
