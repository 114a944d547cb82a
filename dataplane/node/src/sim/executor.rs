//! One thread of tasks in virtual time: a timer fires only when no task can go on, so a run takes no real time to
//! wait, and one in which nobody can ever go on is seen.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use futures::{executor::LocalPool, future::LocalBoxFuture, task::LocalSpawn};

use crate::platform::Timer;

/// Virtual time that one call of [`Executor::run`] may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Wall clock at the start of every run.
const STARTED_UNIX_MS: u64 = 1_800_000_000_000;

/// What [`crate::host::Links`] and the stores start tasks with.
pub(super) type Spawn = Rc<dyn Fn(LocalBoxFuture<'static, ()>)>;

#[derive(Default)]
struct Time {
    now: Cell<Duration>,
    next: Cell<u64>,
    sleeping: RefCell<BTreeMap<(Duration, u64), Waker>>,
}

/// Clocks of an executor.
#[derive(Clone)]
pub(crate) struct SimTimer {
    time: Rc<Time>,
    /// What its monotonic clock showed at the start, and thousandths of true time that it runs at.
    origin: Duration,
    permille: u32,
}

impl SimTimer {
    /// A machine's own clocks.
    pub(super) fn of_machine(&self, origin: Duration, permille: u32) -> Self {
        Self { time: Rc::clone(&self.time), origin, permille }
    }
}

/// Takes a sleeper off the list however its wait ends.
struct Sleeper {
    time: Rc<Time>,
    key: (Duration, u64),
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.time.sleeping.borrow_mut().remove(&self.key);
    }
}

impl Timer for SimTimer {
    async fn sleep(&self, duration: Duration) {
        let id = self.time.next.get();
        self.time.next.set(id + 1);
        let sleeper = Sleeper { time: Rc::clone(&self.time), key: (self.time.now.get() + duration, id) };
        let mut started = false;
        poll_fn(|context| {
            if started && sleeper.time.now.get() >= sleeper.key.0 {
                return Poll::Ready(());
            }
            started = true;
            sleeper.time.sleeping.borrow_mut().insert(sleeper.key, context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn monotonic(&self) -> Duration {
        self.origin + self.time.now.get() * self.permille / 1000
    }

    fn unix_ms(&self) -> u64 {
        STARTED_UNIX_MS + u64::try_from(self.time.now.get().as_millis()).expect("runs are short")
    }
}

/// See the module. Dropping it drops every task where it stands: a process that is killed.
pub(super) struct Executor {
    pool: LocalPool,
    timer: SimTimer,
}

impl Executor {
    pub(super) fn new() -> Self {
        let timer = SimTimer { time: Rc::default(), origin: Duration::ZERO, permille: 1000 };
        Self { pool: LocalPool::new(), timer }
    }

    pub(super) fn timer(&self) -> SimTimer {
        self.timer.clone()
    }

    pub(super) fn spawn(&self) -> Spawn {
        let spawner = self.pool.spawner();
        Rc::new(move |task: LocalBoxFuture<'static, ()>| {
            // What is started while the executor is dropped never runs.
            let _dropped = spawner.spawn_local_obj(task.into());
        })
    }

    /// Runs every task until `work` has ended, and on until nothing can go on without time passing.
    ///
    /// # Panics
    /// If it does not end: nothing can run, or too much time has passed.
    pub(super) fn run<T: 'static>(&mut self, work: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        (self.spawn())(Box::pin(async move {
            let value = work.await;
            *slot.borrow_mut() = Some(value);
        }));
        let until = self.timer.time.now.get() + PATIENCE;
        loop {
            self.pool.run_until_stalled();
            if let Some(value) = result.borrow_mut().take() {
                return value;
            }
            self.fire_next();
            assert!(self.timer.time.now.get() < until, "the run does not end");
        }
    }

    fn fire_next(&self) {
        let time = &self.timer.time;
        // Off the list also if its task is stopped: then it sees that it is over when it goes on. Others run after it.
        let first = time.sleeping.borrow_mut().pop_first();
        let ((due, _), waker) = first.expect("nothing can run and nobody sleeps: a deadlock");
        time.now.set(time.now.get().max(due));
        waker.wake();
    }
}

/// Lets other tasks run so many times.
pub(super) async fn turns(count: u64) {
    let mut left = count;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
