use std::{
    cell::RefCell,
    future::Future,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    thread,
};

use futures::{
    executor::{LocalPool, block_on},
    task::{LocalSpawnExt, noop_waker},
};

use super::{BLOCK_BYTES, BufferPool, IoBuf, SHARD_BLOCK_BYTES};

#[test]
fn heap_buffers_are_aligned_and_zeroed() {
    for (len, capacity) in [(0, 4096), (1, 4096), (4096, 4096), (5000, 8192)] {
        let mut buf = IoBuf::zeroed(len);
        assert_eq!((buf.len(), buf.capacity(), buf.is_empty()), (len, capacity, len == 0));
        assert!(buf.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
        buf.set_len(capacity);
        assert!(buf.iter().all(|&byte| byte == 0));
    }
    assert_eq!(&*IoBuf::copy_of(b"quarry"), b"quarry");
}

#[test]
#[should_panic(expected = "capacity 4096")]
fn length_is_bounded_by_capacity() {
    IoBuf::zeroed(10).set_len(4097);
}

#[test]
fn slots_are_disjoint_and_come_back() {
    let pool = BufferPool::new(20).unwrap();
    let mut taken: Vec<IoBuf> = (0..20).map(|_| pool.try_take().unwrap()).collect();
    assert!(pool.try_take().is_none() && pool.try_take_many(1).is_none());
    for (mark, buf) in (0_u8..).zip(&mut taken) {
        assert_eq!((buf.len(), buf.as_ptr().addr() % SHARD_BLOCK_BYTES), (SHARD_BLOCK_BYTES, 0));
        buf.fill(mark);
    }
    for (mark, buf) in (0_u8..).zip(&taken) {
        assert!(buf.iter().all(|&byte| byte == mark));
    }
    taken.truncate(5);
    assert_eq!((pool.free_slots(), pool.slots()), (15, 20));
    taken[0].set_len(17);
    drop(taken);
    assert_eq!(pool.try_take_many(20).unwrap()[0].len(), SHARD_BLOCK_BYTES);
}

#[test]
fn bytes_share_the_slot_until_the_last_slice() {
    let pool = BufferPool::new(1).unwrap();
    let mut buf = pool.try_take().unwrap();
    buf[100..106].copy_from_slice(b"quarry");
    let address = buf.as_ptr().addr();
    let bytes = buf.into_bytes();
    assert_eq!(bytes.as_ptr().addr(), address);
    let slice = bytes.slice(100..106);
    drop(bytes);
    assert_eq!((&slice[..], pool.free_slots()), (&b"quarry"[..], 0));
    thread::spawn(move || drop(slice)).join().unwrap();
    assert_eq!(pool.free_slots(), 1);
}

#[test]
fn a_pool_knows_its_own_buffers() {
    let (pool, other) = (BufferPool::new(2).unwrap(), BufferPool::new(2).unwrap());
    let (start, bytes) = pool.region();
    assert_eq!((start.addr().get() % super::HUGE_PAGE_BYTES, bytes), (0, 2 * SHARD_BLOCK_BYTES));
    for buf in pool.try_take_many(2).unwrap() {
        let offset = buf.region_offset(&pool).unwrap();
        assert_eq!(start.addr().get() + offset, buf.as_ptr().addr());
        assert_eq!(buf.region_offset(&other), None);
    }
    assert_eq!(IoBuf::zeroed(1).region_offset(&pool), None);
}

#[test]
fn memory_outlives_the_pool() {
    let mut buf = BufferPool::new(3).unwrap().try_take().unwrap();
    buf.fill(7);
    assert!(buf.iter().all(|&byte| byte == 7));
}

#[test]
fn waiters_are_served_in_order() {
    let pool = BufferPool::new(4).unwrap();
    let mut held: Vec<IoBuf> = pool.try_take_many(4).unwrap();
    let served = Rc::new(RefCell::new(Vec::new()));
    let kept = Rc::new(RefCell::new(Vec::new()));
    let mut executor = LocalPool::new();
    for (name, count) in [(0, 3), (1, 1), (2, 2)] {
        let (pool, served, kept) = (pool.clone(), Rc::clone(&served), Rc::clone(&kept));
        let task = async move {
            let taken = pool.take_many(count).await;
            served.borrow_mut().push(name);
            kept.borrow_mut().push(taken);
        };
        executor.spawner().spawn_local(task).unwrap();
    }
    executor.run_until_stalled();
    held.pop();
    held.pop();
    executor.run_until_stalled();
    // Two are free, enough for the second and the third, but the first came first.
    assert_eq!((served.borrow().as_slice(), pool.free_slots()), (&[][..], 2));
    assert!(pool.try_take().is_none(), "nobody overtakes");
    held.pop();
    held.pop();
    executor.run_until_stalled();
    assert_eq!((served.borrow().as_slice(), pool.free_slots()), (&[0, 1][..], 0));
    kept.borrow_mut().clear();
    executor.run_until_stalled();
    assert_eq!(served.borrow().as_slice(), &[0, 1, 2]);
}

#[test]
fn a_cancelled_waiter_lets_the_next_pass() {
    let pool = BufferPool::new(2).unwrap();
    let held = pool.try_take().unwrap();
    let mut context = Context::from_waker(&*Box::leak(Box::new(noop_waker())));
    let mut second = pin!(pool.take_many(1));
    {
        let mut first = pin!(pool.take_many(2));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
    }
    assert!(matches!(second.as_mut().poll(&mut context), Poll::Ready(taken) if taken.len() == 1));
    drop(held);
}

#[test]
fn threads_exhaust_the_pool_without_deadlock() {
    let pool = BufferPool::new(4).unwrap();
    let rounds = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let threads: Vec<_> = (1..=4)
        .map(|count| {
            let (pool, rounds) = (pool.clone(), Arc::clone(&rounds));
            thread::spawn(move || {
                for _ in 0..500 {
                    let taken = block_on(pool.take_many(count));
                    assert_eq!(taken.len(), count);
                    rounds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((rounds.load(std::sync::atomic::Ordering::Relaxed), pool.free_slots()), (2000, 4));
}
