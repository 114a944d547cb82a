//! Where the time of a request goes.
//!
//! The request being served is known to the thread while it is polled ([`within`]); whatever works for it says so
//! ([`run`], [`timed`]) without being told which request that is. A task that is spawned for it takes it along
//! ([`carried`]). Outside a request nothing is measured.
//!
//! A stage's time is that during which at least one thing of that stage was under way: shards that are written at once
//! count once. Stages may overlap, so their sum is not the request's time.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// What a request is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// From the last byte of the head until the signature is looked at.
    Parse,
    /// The signature and the policies.
    Auth,
    /// Digests of the body and of its shards.
    Checksum,
    /// Parity.
    Encode,
    /// Shards on devices of this node, waited for.
    Device,
    /// Shards on devices of other nodes, waited for.
    Peer,
    /// The metadata partition: commits and look-ups, waited for.
    Commit,
}

/// How many there are.
pub const STAGES: usize = 7;

impl Stage {
    /// All, in the order of a request.
    pub const ALL: [Self; STAGES] =
        [Self::Parse, Self::Auth, Self::Checksum, Self::Encode, Self::Device, Self::Peer, Self::Commit];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Auth => "auth",
            Self::Checksum => "checksum",
            Self::Encode => "encode",
            Self::Device => "device",
            Self::Peer => "peer",
            Self::Commit => "commit",
        }
    }
}

/// Time by stage, in the order of [`Stage::ALL`].
pub type StageTimes = [Duration; STAGES];

/// The stages of one request.
#[derive(Debug, Default)]
pub struct Stages {
    spent: [Cell<Duration>; STAGES],
    /// How many things are under way, and since when at least one is.
    under_way: [Cell<(u32, Option<Instant>)>; STAGES],
}

impl Stages {
    /// Something begins.
    pub fn begin(&self, stage: Stage) {
        let cell = &self.under_way[stage as usize];
        let (count, since) = cell.get();
        cell.set((count + 1, since.or_else(|| Some(Instant::now()))));
    }

    /// Something that has begun ends; nothing happens if nothing is under way.
    pub fn end(&self, stage: Stage) {
        let cell = &self.under_way[stage as usize];
        match cell.get() {
            (0, _) => {}
            (1, since) => {
                let spent = &self.spent[stage as usize];
                spent.set(spent.get() + since.map_or(Duration::ZERO, |since| since.elapsed()));
                cell.set((0, None));
            }
            (count, since) => cell.set((count - 1, since)),
        }
    }

    /// What each stage took; what is still under way is not in it.
    pub fn times(&self) -> StageTimes {
        std::array::from_fn(|at| self.spent[at].get())
    }
}

thread_local! {
    static CURRENT: Cell<Option<Rc<Stages>>> = const { Cell::new(None) };
}

/// The request that is being polled.
pub fn current() -> Option<Rc<Stages>> {
    CURRENT.with(|cell| {
        let current = cell.take();
        cell.set(current.clone());
        current
    })
}

/// Puts the former request back.
struct Entered(Option<Rc<Stages>>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// Does something for a request.
pub fn enter<T>(stages: &Rc<Stages>, work: impl FnOnce() -> T) -> T {
    let _entered = Entered(CURRENT.replace(Some(Rc::clone(stages))));
    work()
}

/// A future that works for a request, if for any.
#[derive(Debug)]
pub struct Within<F> {
    stages: Option<Rc<Stages>>,
    future: F,
}

impl<F: Future + Unpin> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { stages, future } = &mut *self;
        match stages {
            Some(stages) => enter(stages, || Pin::new(future).poll(cx)),
            None => Pin::new(future).poll(cx),
        }
    }
}

/// Makes a future work for a request.
pub fn within<F: Future + Unpin>(stages: Rc<Stages>, future: F) -> Within<F> {
    Within { stages: Some(stages), future }
}

/// Makes a future that is about to be spawned work for the request that spawns it.
pub fn carried<F: Future + Unpin>(future: F) -> Within<F> {
    Within { stages: current(), future }
}

struct Running {
    stages: Rc<Stages>,
    stage: Stage,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stages.end(self.stage);
    }
}

fn start(stage: Stage) -> Option<Running> {
    current().map(|stages| {
        stages.begin(stage);
        Running { stages, stage }
    })
}

/// Works at a stage of the request that is being served.
pub fn run<T>(stage: Stage, work: impl FnOnce() -> T) -> T {
    let _running = start(stage);
    work()
}

/// Waits at a stage of the request that is being served, from the first poll on.
pub async fn timed<F: Future>(stage: Stage, future: F) -> F::Output {
    let _running = start(stage);
    future.await
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, executor::block_on, future::join};

    use super::*;

    const NAP: Duration = Duration::from_millis(5);

    fn nap() {
        std::thread::sleep(NAP);
    }

    #[test]
    fn time_goes_to_the_request_that_is_polled() {
        let (one, other) = (Rc::new(Stages::default()), Rc::new(Stages::default()));
        run(Stage::Encode, nap);
        enter(&one, || run(Stage::Encode, nap));
        let work = async {
            // Another request is polled in between.
            enter(&other, || run(Stage::Checksum, || ()));
            run(Stage::Encode, nap);
            carried(async { run(Stage::Peer, nap) }.boxed_local()).await;
        };
        block_on(within(Rc::clone(&one), work.boxed_local()));
        let times = one.times();
        assert!(times[Stage::Encode as usize] >= 2 * NAP && times[Stage::Peer as usize] >= NAP, "{times:?}");
        assert!(
            times[Stage::Checksum as usize].is_zero() && !other.times()[Stage::Checksum as usize].is_zero()
        );
        assert!(current().is_none());
    }

    #[test]
    fn what_is_under_way_at_once_counts_once() {
        let stages = Rc::new(Stages::default());
        let wait = || timed(Stage::Device, async { nap() });
        let started = Instant::now();
        block_on(within(Rc::clone(&stages), join(wait(), wait()).boxed_local()));
        let took = started.elapsed();
        let spent = stages.times()[Stage::Device as usize];
        assert!(spent >= 2 * NAP && spent <= took, "{spent:?} of {took:?}");
        // Given up half way: it ends with the drop.
        let mut given_up =
            within(Rc::clone(&stages), timed(Stage::Commit, std::future::pending::<()>()).boxed_local());
        assert!((&mut given_up).now_or_never().is_none());
        nap();
        drop(given_up);
        assert!(stages.times()[Stage::Commit as usize] >= NAP);
        stages.end(Stage::Commit);
    }
}
