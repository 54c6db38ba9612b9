//! Threads that take bytes from a socket, as those of a session take requests from the kernel.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use super::{Rest, Turns};

const LIMIT: Duration = Duration::from_secs(60);
const THREADS: usize = 4;

struct Session {
    turns: Arc<Turns>,
    kernel: UnixStream,
    answers: Receiver<(u8, ThreadId)>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Session {
    /// `serve` gives whether the volume is being locked.
    fn start(serve: impl Fn(u8) -> bool + Send + Sync + 'static) -> Session {
        let (kernel, device) = UnixStream::pair().unwrap();
        let turns = Arc::new(Turns::new(device.try_clone().unwrap().into(), THREADS));
        let (answer, answers): (Sender<_>, _) = mpsc::channel();
        let serve = Arc::new(serve);
        let threads = (0..THREADS)
            .map(|_| {
                let (turns, answer, serve) = (turns.clone(), answer.clone(), serve.clone());
                let mut device = device.try_clone().unwrap();
                std::thread::spawn(move || {
                    let mut request = [0];
                    while device.read(&mut request).unwrap() == 1 {
                        let turn = turns.begin();
                        let closed = serve(request[0]);
                        answer.send((request[0], std::thread::current().id())).unwrap();
                        turns.end(&turn, closed, false);
                    }
                })
            })
            .collect();
        Session { turns, kernel, answers, threads }
    }

    fn send(&mut self, request: u8) {
        self.kernel.write_all(&[request]).unwrap();
    }

    fn answer(&self) -> (u8, ThreadId) {
        self.answers.recv_timeout(LIMIT).unwrap()
    }

    /// Sends requests one by one until all threads but one rest.
    fn settle(&mut self) {
        let begun = Instant::now();
        while self.turns.rest.lock().unwrap().resting < THREADS - 1 {
            assert!(begun.elapsed() < LIMIT, "threads do not come to rest");
            self.send(0);
            assert_eq!(self.answer().0, 0);
            // Where the thread that has answered is on its way to rest.
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn end(self) {
        drop(self.kernel);
        let (ended, over) = mpsc::channel();
        std::thread::spawn(move || {
            self.threads.into_iter().for_each(|thread| thread.join().unwrap());
            ended.send(()).unwrap();
        });
        over.recv_timeout(LIMIT).expect("every thread hears that the connection has ended");
    }
}

#[test]
fn requests_one_by_one_are_taken_by_one_thread() {
    let mut session = Session::start(|_| false);
    session.settle();
    // The machine may be busy, and the watch step in: that must not be the rule.
    let mut alone = false;
    for _ in 0..100 {
        let takers: HashSet<ThreadId> = (0..20)
            .map(|_| {
                session.send(0);
                session.answer().1
            })
            .collect();
        alone |= takers.len() == 1;
    }
    assert!(alone, "the threads took turns");
    session.end();
}

#[test]
fn no_request_waits_behind_those_that_hang() {
    let (go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let mut session = Session::start(move |request| {
        if request == 1 {
            held.lock().unwrap().recv().unwrap();
        }
        false
    });
    session.settle();
    for _ in 0..THREADS - 1 {
        session.send(1);
        session.send(2);
        assert_eq!(session.answer().0, 2, "answered although another hangs");
    }
    for _ in 0..THREADS - 1 {
        go.send(()).unwrap();
        assert_eq!(session.answer().0, 1);
    }
    session.settle();
    session.end();
}

#[test]
fn requests_side_by_side_are_taken_by_all() {
    let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    let mut session = Session::start(move |request| {
        if request == 1 {
            most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(300));
            busy.fetch_sub(1, Ordering::SeqCst);
        }
        false
    });
    session.settle();
    for _ in 0..200 {
        session.send(1);
    }
    for _ in 0..200 {
        session.answer();
    }
    assert!(session.turns.together.load(Ordering::SeqCst), "long before the watch would have brought them in");
    assert!(seen.load(Ordering::SeqCst) > 1);
    session.settle();
    session.end();
}

#[test]
fn a_lock_reaches_every_thread() {
    let together = Barrier::new(THREADS);
    let mut session = Session::start(move |request| {
        if request == 1 {
            together.wait();
        }
        request == 1
    });
    session.settle();
    session.turns.release();
    for _ in 0..THREADS {
        session.send(1);
    }
    for _ in 0..THREADS {
        assert_eq!(session.answer().0, 1);
    }
    session.end();
}

#[test]
fn one_that_will_take_long_is_replaced_before_it_begins() {
    let mut session = Session::start(|_| false);
    session.settle();
    let turns = session.turns.clone();
    // As if the one that waits had taken a request, so recently that no watch would step in.
    turns.waiting.fetch_sub(1, Ordering::SeqCst);
    turns.slow();
    let Rest { called, resting, .. } = *turns.rest.lock().unwrap();
    assert!(called == 1 || resting < THREADS - 1, "somebody was sent");
    turns.waiting.fetch_add(1, Ordering::SeqCst);
    session.end();
}

#[test]
fn threads_that_rest_hear_of_the_end() {
    let mut session = Session::start(|_| false);
    session.settle();
    session.end();
}
