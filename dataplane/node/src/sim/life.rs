//! The tasks of one run of a node among others: they end all at once, where they stand, when the node is killed.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::{Rc, Weak},
    task::Poll,
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
}

impl Life {
    pub(super) fn new(spawn: Spawn) -> Rc<Self> {
        let (tasks, swept, over) = (RefCell::default(), Cell::new(64), Cell::new(false));
        Rc::new(Self { spawn, tasks, swept, over })
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

    fn start(&self, task: LocalBoxFuture<'static, ()>) {
        if self.over.get() {
            return;
        }
        let slot: Rc<Task> = Rc::new(RefCell::new(Some(task)));
        self.tasks.borrow_mut().push(Rc::downgrade(&slot));
        if self.tasks.borrow().len() > 2 * self.swept.get() {
            self.tasks.borrow_mut().retain(|task| task.strong_count() > 0);
            self.swept.set(self.tasks.borrow().len().max(64));
        }
        (self.spawn)(Box::pin(poll_fn(move |context| {
            let mut slot = slot.borrow_mut();
            let Some(task) = &mut *slot else { return Poll::Ready(()) };
            task.as_mut().poll(context)
        })));
    }

    /// Nothing of it runs from now on.
    pub(super) fn end(&self) {
        self.over.set(true);
        let tasks = self.tasks.take();
        let dropped: Vec<_> =
            tasks.iter().filter_map(Weak::upgrade).filter_map(|task| task.borrow_mut().take()).collect();
        drop(dropped);
    }
}
